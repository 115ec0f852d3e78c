//! What about a job's memory cannot be saved.

use super::area;

area! {
    "Refused: memory"

    UNKNOWN_FLAG = 501, "a mapping has a property that is not supported";
    because "The kernel shows a flag for it in smaps that this rckpt does not know.";
    remedy "use a newer rckpt, or take the checkpoint when it is unmapped";

    DEVICE_MEMORY = 502, "a mapping shows memory of a device";
    because "What is in a device cannot be read or put back from outside.";
    remedy "close the device before the checkpoint";

    USERFAULTFD_WATCHES = 503, "userfaultfd watches a mapping";
    because "Its faults are served by another thread or process over a descriptor that cannot be saved.";
    remedy "take the checkpoint when the program has unregistered it";

    SHADOW_STACK = 504, "a mapping is a shadow stack";
    because "Control-flow protection of the CPU has state that this rckpt cannot bring back.";
    remedy "start the job with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off";

    AIO_RING = 505, "a mapping is the ring of somebody else's asynchronous I/O";
    because "A fork leaves the ring of io_setup behind without its context, or only a part of it is mapped.";
    remedy "let the program unmap it";

    AIO_UNDER_WAY = 506, "asynchronous I/O requests are under way";
    because "A request of io_submit that the kernel is working on cannot be seen from outside.";
    remedy "take the checkpoint when they are done; it is tried again for a while by itself";

    UPROBES = 507, "a mapping holds the probes of a tracing tool";
    because "perf, bpftrace or the like have changed the program's code.";
    remedy "end that tool first";

    KERNEL_OBJECT_MAPPED = 508, "a mapping belongs to a kernel object that is not supported";
    because "It has no file that could be opened again: a ring of perf, BPF, KVM or a driver.";
    remedy "take the checkpoint when the program has closed it";

    PROTECTION_KEY = 509, "a mapping has a memory protection key";
    because "Keys are given out by the kernel (pkey_alloc), and this rckpt does not bring them back.";
    remedy "run the program without it";

    HUGE_PAGE_SIZE = 510, "a mapping consists of huge pages of an unusual size";
    because "Only those of 2 MiB are supported.";
    remedy "let the program use huge pages of 2 MiB, or transparent ones";

    POLICY_OF_PART = 511, "a NUMA policy was set for a part of shared memory through another mapping";
    because "The kernel does not show such a policy to anybody else.";
    remedy "let the program set it through the mapping that it keeps, or use numactl for the whole job";

    SPECIAL_MAPPING = 512, "a special mapping is not known";
    because "The kernel has put something into the process that this rckpt has no name for.";
    remedy "use a newer rckpt; if there is none, please report it";

    UNREADABLE_PAGE = 513, "a page that is there cannot be read";
    because "Its memory is damaged (a hardware error), or it is a guard page of a kernel that does not tell.";
    remedy "look at the kernel's log for memory errors; Linux 6.7 or later tells guard pages";

    SEGMENT_OF_HUGE_PAGES = 514, "System V shared memory lies on huge pages of an unusual size";
    because "SHM_HUGETLB with other pages than those of 2 MiB is not supported.";
    remedy "let the program make it without SHM_HUGETLB";

    SHARED_HUGE_PAGES = 515, "shared anonymous memory lies on huge pages";
    because "There is no file through which it could be shared again.";
    remedy "use a file on hugetlbfs, or ordinary pages";

    MAPPED_DEVICE = 516, "a device or kernel file is mapped";
    because "What is behind it is not memory of the job.";
    remedy "take the checkpoint when the program does not use it";

    MAPPED_CONTENT_UNREADABLE = 517, "a deleted file is mapped and cannot be read";
    because "Its content has to go into the checkpoint, as nothing leads to it any more, and no page could be read.";
    remedy "keep the mapped file until the job has ended";

    IO_URING_MEMORY = 518, "memory of an io_uring ring is mapped that cannot be saved";
    because "The ring itself is refused, or nobody has it open any more.";
    remedy "switch io_uring off in the program (for node: UV_USE_IO_URING=0)";
}
