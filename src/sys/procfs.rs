//! Parsers of /proc: maps, smaps, status, stat, fdinfo, timers. They take bytes, never paths.
