//! Terminals: modes, window size, foreground groups.
