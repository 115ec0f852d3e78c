//! ptrace requests, each one function, and the registers and extended state they carry.
