//! Making processes: clone3 with chosen ids, namespaces and their id maps, and waiting.
