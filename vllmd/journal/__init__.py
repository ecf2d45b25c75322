"""Where vllmd's log goes: to systemd's journal with fields, or to stderr as lines for people or as JSON."""
