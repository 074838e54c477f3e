# Installing enforces nothing by surprise (observe mode, no accounts); upgrading restarts the daemon, which adopts what is
# in force: the pinned programs decide on throughout.
systemd-sysusers writ.conf || :
systemd-tmpfiles --create writ.conf || :
if [ "$1" -eq 1 ]; then
    systemctl --no-reload preset writ.service >/dev/null 2>&1 || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload >/dev/null 2>&1 || :
    if [ "$1" -eq 1 ]; then
        # Presets decide whether it is enabled; only an enabled unit is started.
        if systemctl is-enabled --quiet writ.service; then systemctl start writ.service || :; fi
    else
        systemctl try-restart writ.service || :
    fi
fi
