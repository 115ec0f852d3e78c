//! A job under supervision: its directory of generations, the event loop, the control socket.

pub mod directory;
