//! State in motion: each fixture works without a pause while it is dumped.

crate::fixtures! {
    motion_allocation;
    motion_calls;
    motion_descriptors;
    motion_epoll;
    motion_exec;
    motion_files;
    motion_io_uring;
    motion_forks;
    motion_inotify;
    motion_ipc;
    motion_mix;
    motion_mutexes;
    motion_outputs.with_output("appended");
    motion_pages;
    motion_ping_pong;
    motion_posix_queues;
    motion_sharing_memory;
    motion_signals;
    motion_socket_packets;
    motion_socket_pair;
    motion_socket_server;
    motion_tcp;
    motion_terminals;
    motion_threads;
    motion_timers;
    motion_udp;
    motion_vdso;
    motion_vectors;
    motion_vfork;
    motion_waits;
}
