#!/usr/bin/env python3
"""Prints the JSON Schema of OCSF's Network Activity as published: class 4001 of 1.8.0 with `host` and `security_control`.

    PYTHONPATH=target/tools/python tests/ocsf/generate.py > tests/ocsf/network_activity-1.8.0.schema.json

The package ocsf-json-schema ships OCSF's own exports; `cargo xtask setup --test` installs it below target/tools.
"""
import json

from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0"))
published = schema.get_class_schema(class_name="network_activity", profiles=["host", "security_control"])
print(json.dumps(published, sort_keys=True, separators=(",", ":")))
