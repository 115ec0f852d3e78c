//! Bringing a job back: a pure plan first, then process tree, descriptors, memory, threads, go.
