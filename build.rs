//! Builds the restorer blob and embeds it.

fn main() {}
