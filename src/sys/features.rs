//! What this kernel and machine allow, tried once by function and kept in one struct.
