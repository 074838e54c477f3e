# Removing takes enforcement away, on the record; WRIT_KEEP_ENFORCEMENT=1 keeps it until the next boot. An upgrade takes
# nothing away and stops nothing.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable --now writ.service >/dev/null 2>&1 || :
    if [ "${WRIT_KEEP_ENFORCEMENT:-}" = 1 ]; then
        echo "writ: enforcement stays in force until the next boot, as asked"
    else
        writ uninstall || echo "writ: enforcement could not be taken away and is in force until the next boot" >&2
    fi
fi
