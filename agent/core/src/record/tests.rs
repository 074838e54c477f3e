//! Claims about records: what goes out comes back, always fits a line, and matches the published schema.
