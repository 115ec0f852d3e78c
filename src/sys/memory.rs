//! Memory of other processes: page maps, reading and writing.
