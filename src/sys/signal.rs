//! Signals: masks, queued signals, signalfd, and sending to processes by pidfd.
