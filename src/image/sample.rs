//! A small job for the tests of this room, with at least one record of every kind.

use crate::image::codec::checksum;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::event::{BusyPoll, EpollItem, FileWatch};
use crate::model::file::{
    Fd, FdTable, FileLock, FileLockKind, FileOwner, FsContext, Inode, InodeKind, OpenFile,
    OpenFileKind, Output, Outputs, Pipe, PipeEnd, Saved, Stream, StreamTarget,
};
use crate::model::id::{
    Bytes, FdTableId, FsId, InodeId, MmId, ObjectId, OpenFileId, Pid, PipeId, PosixQueueId,
    SocketId, TerminalId,
};
use crate::model::ipc::{
    Ipc, IpcIdentity, Message, MessageQueue, PosixMessage, PosixQueue, Segment, Semaphore,
    SemaphoreSet, SemaphoreUndo,
};
use crate::model::job::{Job, Machine, VdsoImage};
use crate::model::memory::{
    AddressSpace, AioContext, Backing, GuardRange, MemoryPolicy, MmAreas, Prot, Vma, VmaFlags,
};
use crate::model::process::{
    Credentials, PosixTimer, Process, ProcessState, ResourceLimit, TimerNotification,
};
use crate::model::ring::{Ring, RingLayout};
use crate::model::signal::{PendingSignal, SIGINFO_SIZE, SignalAction, SignalSet};
use crate::model::socket::{
    InetConnection, InetMessage, InetSocket, MulticastGroup, Socket, SocketCredentials,
    SocketDetail, SocketOption, UnixBinding, UnixConnection, UnixMessage, UnixSocket,
};
use crate::model::terminal::{
    Flow, PseudoTerminal, TERMIOS2_SIZE, TerminalEnd, TerminalInput, TerminalState, Terminals,
};
use crate::model::thread::{Registers, Rseq, Scheduling, Thread};
use crate::model::time::{Clocks, TimeSpec, TimerSpec};

/// First page, and number of pages, of the sample's private anonymous memory.
pub(crate) const MEMORY_PAGES: (u64, u64) = (0x10000, 2000);

/// Fills a page with bytes that cannot be compressed, the same for the same number.
pub(crate) fn noise(number: u64, page: &mut [u8]) {
    for (word, place) in (number * 512..).zip(page.chunks_exact_mut(8)) {
        place.copy_from_slice(&checksum(&word.to_le_bytes()).to_le_bytes());
    }
}

/// The job.
pub(crate) fn job() -> Job {
    Job {
        id: bytes("sample"),
        command: vec![bytes("/bin/sample"), bytes("--fast")],
        root: Pid(100),
        machine: Machine {
            host: bytes("node1"),
            kernel: bytes("6.1.0"),
            cpu: bytes("a processor"),
            cpu_flags: vec!["avx".to_owned(), "sse2".to_owned()],
            xcr0: 7,
            xstate_components: vec![(576, 256)],
            boot_id: bytes("0000"),
            temporary: vec![(bytes("TMPDIR"), bytes("/tmp/17"))],
        },
        clocks: Clocks { realtime: time(1_700_000_000), monotonic: time(50), boottime: time(60) },
        vdso: VdsoImage { bytes: vec![0x7f; 64] },
        processes: vec![process(), child(), zombie()],
        address_spaces: vec![address_space()],
        fd_tables: vec![fd_table()],
        fs: vec![FsContext { cwd: InodeId(1), root: bytes("/"), umask: 0o22 }],
        open_files: open_files(),
        inodes: inodes(),
        pipes: vec![Pipe { capacity: 65536, queued: vec![bytes("waiting")] }],
        sockets: sockets(),
        terminals: terminals(),
        ipc: ipc(),
        outputs: Outputs {
            named: vec![bytes("/home/user/*.log")],
            files: vec![Output {
                path: bytes("/home/user/a.log"),
                number: 77,
                size: 10,
                mtime: time(1_600_000_000),
                digest: Bytes(vec![1; 16]),
            }],
            saved: Saved {
                named: vec![bytes("/home/user/state.db*")],
                by_itself: true,
                files: vec![InodeId(2)],
            },
        },
        objects: 3,
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::from(text.as_bytes())
}

fn time(seconds: i64) -> TimeSpec {
    TimeSpec { seconds, nanoseconds: 5 }
}

fn process() -> Process {
    let second = Thread { tid: Pid(101), rseq: None, ..thread() };
    Process {
        pid: Pid(100),
        ppid: Pid(1),
        pgid: Pid(100),
        sid: Pid(90),
        exit_signal: 17,
        state: ProcessState::Alive,
        threads: vec![thread(), second],
        main_ended: Some(0x300),
        name: bytes("sample"),
        mm: MmId(0),
        fd_table: FdTableId(0),
        fs: FsId(0),
        shares_actions: true,
        actions: vec![SignalAction {
            signal: 10,
            handler: RemoteAddr(0x40_1000),
            flags: 0x0400_0000,
            restorer: RemoteAddr(0x40_2000),
            mask: SignalSet(1),
        }],
        pending: vec![pending(10)],
        interval_timers: [TimerSpec { interval: time(1), value: time(1) }; 3],
        posix_timers: vec![PosixTimer {
            id: 0,
            clock: 1,
            notification: TimerNotification { method: 0, signal: 14, value: 5, thread: None },
            timer: TimerSpec::default(),
            overrun: 0,
        }],
        limits: vec![ResourceLimit { resource: 7, soft: 1024, hard: 4096 }],
        credentials: Credentials {
            uids: [1000; 4],
            gids: [1000; 4],
            groups: vec![1000, 27],
            ..Credentials::default()
        },
        personality: 0,
        child_subreaper: false,
        oom_score_adj: 0,
        tsc_mode: 1,
        cpuid_faults: false,
        autogroup_nice: Some(3),
        controlling_terminal: true,
    }
}

fn child() -> Process {
    let main = Thread { tid: Pid(110), ..thread() };
    Process { pid: Pid(110), ppid: Pid(100), threads: vec![main], main_ended: None, ..process() }
}

fn zombie() -> Process {
    Process {
        pid: Pid(111),
        ppid: Pid(110),
        state: ProcessState::Zombie { wait_status: 256 },
        threads: Vec::new(),
        main_ended: None,
        ..process()
    }
}

fn pending(signal: u8) -> PendingSignal {
    let mut siginfo = vec![0; SIGINFO_SIZE];
    siginfo[0] = signal;
    PendingSignal { siginfo }
}

fn thread() -> Thread {
    Thread {
        tid: Pid(100),
        name: bytes("sample"),
        registers: Registers { rip: 0x40_1234, rsp: 0x7ffd_0000_0000, ..Registers::default() },
        xstate: vec![0; 832],
        pending: vec![pending(12)],
        robust_list: RemoteAddr(0x1000_0000),
        robust_list_length: 24,
        rseq: Some(Rseq {
            area: RemoteAddr(0x1000_0100),
            length: 32,
            signature: 0x5305_3053,
            flags: 0,
        }),
        affinity: vec![3; 8],
        scheduling: Scheduling { nice: 5, ..Scheduling::default() },
        timer_slack: 50_000,
        memory_policy: MemoryPolicy { mode: 1, nodes: vec![1] },
        store_bypass: 4,
        early_machine_check: Some(true),
        ..Thread::default()
    }
}

fn address_space() -> AddressSpace {
    let (first, pages) = MEMORY_PAGES;
    let anonymous = AddrRange::new(first * 4096, (first + pages) * 4096).unwrap();
    let data = AddrRange::new(0x40_0000, 0x40_4000).unwrap();
    let shared = AddrRange::new(0x7f00_0000_0000, 0x7f00_0000_2000).unwrap();
    let ring = AddrRange::new(0x7f00_0001_0000, 0x7f00_0001_1000).unwrap();
    let rings = AddrRange::new(0x7f00_0002_0000, 0x7f00_0002_1000).unwrap();
    let vdso = AddrRange::new(0x7ffd_1000_0000, 0x7ffd_1000_2000).unwrap();
    let vma = |range, backing| Vma {
        range,
        prot: Prot::READ | Prot::WRITE,
        flags: VmaFlags::MAY_WRITE,
        backing,
        name: None,
        policy: None,
    };
    let file = |inode, shared| Backing::File { inode: InodeId(inode), offset: 0, shared };
    AddressSpace {
        vmas: vec![
            vma(data, file(0, false)),
            Vma {
                name: Some(bytes("arena")),
                policy: Some(MemoryPolicy { mode: 3, nodes: vec![3] }),
                ..vma(anonymous, Backing::Anonymous)
            },
            vma(shared, file(2, true)),
            vma(ring, Backing::AioRing),
            vma(rings, Backing::IoUring { file: OpenFileId(26), offset: 0 }),
            vma(vdso, Backing::Vdso),
        ],
        areas: MmAreas { auxv: vec![0; 32], ..MmAreas::default() },
        executable: InodeId(0),
        object: ObjectId(0),
        aio: vec![AioContext {
            start: ring.start,
            places: 127,
            head: 126,
            tail: 1,
            events: vec![[1, 2, 3, 4]; 2],
        }],
        guards: vec![GuardRange(AddrRange::new(first * 4096, first * 4096 + 4096).unwrap())],
        dumpable: 1,
        ..AddressSpace::default()
    }
}

fn inodes() -> Vec<Inode> {
    let linked = |path: &str, mode: u32| Inode {
        kind: InodeKind::Linked,
        path: bytes(path),
        device: 1,
        number: 2,
        mode,
        rdev: 0,
        size: 16384,
        mtime: time(1_600_000_000),
        links: 1,
        build_id: None,
        content: None,
        written: false,
        attributes: Vec::new(),
        ends: None,
    };
    vec![
        Inode { build_id: Some(Bytes(vec![5; 20])), ..linked("/bin/sample", 0o100_755) },
        linked("/home/user", 0o040_700),
        Inode {
            kind: InodeKind::Memfd { flags: 0, seals: 6 },
            path: bytes("buffer"),
            size: 8192,
            content: Some(ObjectId(1)),
            attributes: vec![(bytes("user.note"), bytes("kept"))],
            ..linked("", 0o100_600)
        },
        linked("/home/user/fifo", 0o010_600),
        linked("/dev/null", 0o020_666),
        Inode {
            kind: InodeKind::Segment { id: 32769 },
            number: 40,
            size: 8192,
            content: Some(ObjectId(2)),
            ..linked("/SYSV00001234", 0o100_600)
        },
    ]
}

fn open_files() -> Vec<OpenFile> {
    let open = |kind| OpenFile { flags: 2, kind, owner: None, locks: Vec::new() };
    vec![
        OpenFile {
            owner: Some(FileOwner { kind: 1, id: Pid(100), signal: 0 }),
            locks: vec![FileLock {
                kind: FileLockKind::Posix { holder: Pid(100) },
                access: 1,
                start: 0,
                end: Some(9),
            }],
            ..open(OpenFileKind::Regular { inode: InodeId(2), position: 4 })
        },
        open(OpenFileKind::Directory { inode: InodeId(1), position: 0 }),
        open(OpenFileKind::Path { inode: InodeId(0) }),
        open(OpenFileKind::Pipe { pipe: PipeId(0), end: PipeEnd::Read }),
        open(OpenFileKind::Fifo { inode: InodeId(3), pipe: PipeId(0), end: PipeEnd::Both }),
        open(OpenFileKind::Device { inode: InodeId(4) }),
        open(OpenFileKind::ControllingTerminal),
        open(OpenFileKind::EventFd { count: 3, semaphore: true }),
        open(OpenFileKind::TimerFd {
            clock: 1,
            ticks: 2,
            flags: 0,
            timer: TimerSpec { interval: time(0), value: time(3) },
        }),
        open(OpenFileKind::Stream {
            stream: Stream::Input,
            target: StreamTarget::Terminal { termios: vec![0; 44], window: vec![0; 8] },
        }),
        open(OpenFileKind::Stream {
            stream: Stream::Output,
            target: StreamTarget::Regular { inode: InodeId(2), position: 8 },
        }),
        open(OpenFileKind::Stream {
            stream: Stream::Error,
            target: StreamTarget::Other(bytes("pipe:[1]")),
        }),
        open(OpenFileKind::Proc { path: bytes("/proc/100/status"), position: 0 }),
        open(OpenFileKind::Socket { socket: SocketId(0) }),
        open(OpenFileKind::Socket { socket: SocketId(1) }),
        open(OpenFileKind::Socket { socket: SocketId(2) }),
        open(OpenFileKind::Socket { socket: SocketId(3) }),
        open(OpenFileKind::Socket { socket: SocketId(4) }),
        open(OpenFileKind::SignalFd { mask: SignalSet(0x206) }),
        open(OpenFileKind::Epoll {
            items: vec![EpollItem {
                file: OpenFileId(7),
                number: 20,
                events: 0x8000_0019,
                data: 5,
                told: 1,
            }],
            busy_poll: BusyPoll { microseconds: 64, budget: 8, preferred: true },
        }),
        open(OpenFileKind::PseudoTerminal { terminal: TerminalId(0), end: TerminalEnd::Master }),
        open(OpenFileKind::PseudoTerminal { terminal: TerminalId(0), end: TerminalEnd::Slave }),
        open(OpenFileKind::Inotify {
            watches: vec![FileWatch { number: 3, inode: InodeId(1), mask: 0x100 }],
        }),
        open(OpenFileKind::PidFd { process: Pid(110), thread: true }),
        open(OpenFileKind::MessageQueue { queue: PosixQueueId(0) }),
        open(OpenFileKind::OwnMemory { position: 4096 }),
        open(OpenFileKind::IoUring {
            ring: Box::new(Ring {
                entries: 8,
                completions: 16,
                has_array: true,
                done: 5,
                layout: RingLayout { request_tail: 4, completion_entry: 64, ..Default::default() },
                memory: bytes("ends"),
                requests: bytes("requests"),
            }),
        }),
    ]
}

fn terminals() -> Terminals {
    // ICANON among the local flags.
    let mut termios = vec![0; TERMIOS2_SIZE];
    termios[12] = 2;
    let own = PseudoTerminal {
        index: 3,
        master: bytes("/dev/ptmx"),
        state: TerminalState::Open,
        termios,
        window: vec![24, 0, 80, 0, 0, 0, 0, 0],
        packet_mode: true,
        locked: false,
        exclusive: true,
        flow: Flow::StoppedByKey,
        uid: 1000,
        gid: 5,
        mode: 0o620,
        session: None,
        foreground: None,
        input: TerminalInput::Lines { complete: vec![bytes("line\n")], begun: bytes("beg") },
        output: bytes("shown"),
    };
    Terminals { own: vec![own], outer_foreground: Some(Pid(100)) }
}

fn sockets() -> Vec<Socket> {
    let socket = |kind, detail| Socket {
        domain: 1,
        kind,
        protocol: 0,
        options: vec![SocketOption { level: 1, name: 7, value: Bytes(vec![0, 0x40, 3, 0]) }],
        error: 0,
        detail,
    };
    let credentials = SocketCredentials { pid: Pid(100), uid: 1000, gid: 1000 };
    let message = UnixMessage {
        data: bytes("queued"),
        sender: bytes("/home/user/socket"),
        files: vec![OpenFileId(3), OpenFileId(13)],
        credentials: Some(credentials),
    };
    let listening = UnixSocket {
        name: bytes("/home/user/socket"),
        binding: UnixBinding::File {
            path: bytes("/home/user/socket"),
            mode: 0o755,
            uid: 1000,
            gid: 1000,
        },
        connection: UnixConnection::Listening { backlog: 5, pending: vec![SocketId(1)] },
        peer_credentials: Some(credentials),
        ..UnixSocket::default()
    };
    let pending =
        UnixSocket { connection: UnixConnection::Pending(SocketId(0)), ..UnixSocket::default() };
    let pair = |peer| UnixSocket {
        connection: UnixConnection::Peer(SocketId(peer)),
        shutdown: 1,
        ..UnixSocket::default()
    };
    let address = Bytes(vec![2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let over = InetSocket {
        name: address.clone(),
        connection: InetConnection::Over { peer: address.clone() },
        shutdown: 3,
        queued: vec![InetMessage {
            data: bytes("unread"),
            sender: address.clone(),
            receiver: address.clone(),
        }],
        groups: vec![MulticastGroup { interface: bytes("eth0"), address }],
    };
    let inet = Socket { domain: 2, protocol: 6, error: 104, ..socket(1, SocketDetail::Inet(over)) };
    vec![
        socket(1, SocketDetail::Unix(listening)),
        socket(1, SocketDetail::Unix(pending)),
        socket(2, SocketDetail::Unix(UnixSocket { queued: vec![message], ..pair(3) })),
        socket(2, SocketDetail::Unix(pair(2))),
        inet,
    ]
}

fn ipc() -> Ipc {
    let identity = IpcIdentity { id: 32769, key: 0x1234, mode: 0o600 };
    Ipc {
        segments: vec![Segment {
            identity,
            inode: InodeId(5),
            size: 8192,
            huge_pages: false,
            creator: Pid(100),
            removed: true,
            locked: false,
        }],
        semaphores: vec![SemaphoreSet {
            identity,
            semaphores: vec![Semaphore { value: 5, last: Pid(110) }, Semaphore::default()],
            operated: true,
            undo: vec![SemaphoreUndo { process: Pid(110), number: 0, adjustment: -1 }],
        }],
        queues: vec![MessageQueue {
            identity,
            capacity: 16384,
            messages: vec![Message { kind: 7, text: bytes("first") }],
            last_sender: Pid(100),
            last_receiver: Pid(110),
        }],
        posix_queues: vec![PosixQueue {
            name: bytes("orders"),
            removed: false,
            mode: 0o600,
            max_messages: 10,
            message_size: 8192,
            messages: vec![PosixMessage { priority: 3, text: bytes("urgent") }],
        }],
    }
}

fn fd_table() -> FdTable {
    let entries = (0_u32..)
        .zip(0_i32..)
        .take(22)
        .map(|(file, number)| Fd { number, file: OpenFileId(file), close_on_exec: false })
        .collect();
    FdTable { entries }
}
