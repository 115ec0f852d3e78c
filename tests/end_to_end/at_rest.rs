//! State at rest: each fixture sets something up, sleeps through what happens, and looks again.

crate::fixtures! {
    aio;
    attributes;
    attributes_capabilities;
    attributes_memory;
    attributes_prctl;
    attributes_proc;
    attributes_scheduling;
    epoll_edges;
    epoll_items;
    epoll_nested;
    epoll_numbers;
    epoll_pending;
    epoll_processes;
    eventfd;
    file_deleted;
    file_deleted_kinds;
    file_devices;
    file_directories_deleted;
    file_directory;
    file_lease;
    file_locks;
    file_locks_waiting;
    file_owner;
    file_paths;
    file_positions;
    file_proc_others;
    inotify;
    ipc_posix_queues;
    ipc_queues;
    ipc_segments;
    ipc_segments_huge;
    ipc_semaphores;
    memory_brk;
    memory_cow;
    memory_deleted_file;
    memory_file_mapping;
    memory_flags;
    memory_grows_down;
    memory_guard;
    memory_huge_pages;
    memory_hugetlb;
    memory_large;
    memory_locked;
    memory_memfd;
    io_uring;
    memory_droppable;
    memory_names;
    memory_past_end;
    memory_pool;
    memory_private;
    memory_protection;
    memory_remapped;
    memory_shared;
    memory_shared_zero;
    memory_shm_file;
    memory_sparse;
    netlink_idle;
    pidfd;
    pipe_contents;
    pipe_fifo;
    pipe_pages;
    pipe_processes;
    program_deleted;
    signalfd;
    signals_handlers;
    signals_pending;
    signals_restart;
    signals_stopped;
    signals_waiting;
    socket_backlog;
    socket_credentials;
    socket_datagrams;
    socket_names;
    socket_options;
    socket_pair;
    socket_queues;
    socket_rights;
    streams;
    tcp_connected;
    tcp_listening;
    tcp_pending;
    terminal_closed;
    terminal_modes;
    terminal_sessions;
    threads_identity;
    threads_registers;
    threads_robust;
    threads_rseq;
    threads_waiting;
    timers_alarm;
    timers_clocks;
    timers_interval;
    timers_posix;
    timers_sleeping;
    timers_timerfd;
    tree_daemon.leaving_orphans();
    tree_dead_leaders;
    tree_family;
    tree_leaderless;
    tree_sharing;
    tree_sharing_memory;
    tree_subreaper;
    tree_zombies;
    udp;
}

/// In place the parent is the restoring supervisor, whose id is another one; in namespaces a process
/// takes the old parent's place.
#[test]
fn the_parent_of_a_plain_users_root_keeps_its_id() {
    use crate::harness::rounds::{Case, Start, comes_back};
    use crate::harness::workplace::User;

    comes_back(&Case::new("tree_parent"), User::Plain, Start::Supervised);
}
