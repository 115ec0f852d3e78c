//! What keeps rckpt from reaching a job: its processes, or its supervisor.

use super::area;

area! {
    "Reaching the job"

    NO_SUCH_PROCESS = 201, "there is no such process";
    because "No process has this id here; ids of a container are others outside of it.";
    remedy "rckpt list shows your jobs, ps all processes";

    PROCESS_ENDED = 202, "the process has ended";
    because "It ended before or while it was being stopped for the checkpoint.";
    remedy "start the job again, or restore its last checkpoint";

    ALREADY_TRACED = 203, "another program traces the process";
    because "A debugger, strace or another checkpointer is attached, and the kernel allows one at a time.";
    remedy "detach that first (quit gdb, end strace)";

    NOT_PERMITTED = 204, "the kernel does not allow to trace the process";
    because "It belongs to another user, runs a setuid program or is not dumpable, or only its ancestors may \
        trace it here (kernel.yama.ptrace_scope).";
    remedy "start it under rckpt run, which is its ancestor; or run rckpt as its owner";

    BUSY = 205, "a thread cannot be stopped now";
    because "It is in the middle of vfork or exit, or sleeps where nothing can wake it, mostly waiting for a \
        disk or file server.";
    remedy "try again in a moment; if it stays, look at the disk or file server that it waits for";

    GROWING = 206, "the job starts processes faster than they can be stopped";
    because "Each pass over the job found new ones.";
    remedy "try again in a moment, or take the checkpoint in a calmer phase (rckpt hold)";

    THIRTY_TWO_BIT = 207, "a thread runs 32-bit code";
    because "rckpt saves the registers and memory of 64-bit x86 programs.";
    remedy "build the program for x86_64, or run that part of it outside of the job";

    TRACE_FAILED = 208, "a request to the kernel about a stopped thread failed";
    because "ptrace, or the memory of the process, gave an error that does not belong to any known cause; often \
        the process was killed meanwhile.";
    remedy "see whether the process still runs, and try again; if it stays, please report it";

    NOT_HEALED = 209, "what a killed rckpt left in a thread could not be healed";
    because "An rckpt was killed at a bad moment, and its successor could not bring the thread back to its code.";
    remedy "try again in a moment; the thread finds its way by itself once it runs";

    NOT_INSIDE_JOB = 210, "no process is named";
    because "Without a PID the command is about the job that it runs inside, and it runs inside none (RCKPT_JOB \
        is not set).";
    remedy "rckpt dump PID; rckpt list shows your jobs";

    NOT_SUPERVISED = 211, "no rckpt supervises the process";
    because "Checkpoints are held off and released by telling the job's supervisor.";
    remedy "only a supervisor takes checkpoints by itself: rckpt run";

    SUPERVISOR_GONE = 212, "the job's supervisor does not run any more";
    because "It was killed; the job itself runs on, without checkpoints.";
    remedy "rckpt dump PID, from outside the job, still works";

    SUPERVISOR_STOPPED = 213, "the job's supervisor is stopped";
    because "It got SIGSTOP or Ctrl-Z, and answers nobody until it is continued.";
    remedy "continue it with fg or bg in its shell, or with kill -CONT";

    NO_JOB = 214, "the process is an rckpt without a job";
    because "It is another command of rckpt, or a supervisor whose job has just ended.";
    remedy "rckpt list shows your jobs, ps all processes";

    NOT_YOURS = 215, "the process belongs to another user";
    because "The kernel lets only a process's owner look into it.";
    remedy "only its owner or root can save a process";

    ABOVE_ITSELF = 216, "the command would have to freeze itself";
    because "It runs under the process that it is to save, and no supervisor is there to do it from outside.";
    remedy "call rckpt dump from another shell, or start the job with rckpt run";

    SUPERVISOR_SILENT = 217, "the job's supervisor cannot be asked";
    because "It ended or did not answer, or is an rckpt of another version.";
    remedy "try again; use the rckpt that started the job; rckpt list shows who answers";

    CHECKPOINT_UNDER_WAY = 220, "a checkpoint of the job is being taken already";
    because "One is taken at a time.";
    remedy "wait for that one, or try again when it is complete";

    JOB_ENDING = 221, "the job is being ended";
    because "Its supervisor was told to stop it, and takes no further orders.";
    remedy "wait for its end; rckpt restore DIR goes on from its last checkpoint";

    MISUNDERSTOOD = 222, "the supervisor does not grant the request";
    because "The process that asks says that it belongs to the job and does not, or the other way round, or what \
        it asks about is forgotten.";
    remedy "name the process: rckpt dump PID";

    HELD = 223, "checkpoints of the job are held off";
    because "The job, or somebody for it, has called rckpt hold.";
    remedy "call rckpt release as often as rckpt hold was called, or wait";

    NOT_HELD = 224, "checkpoints of the job are not held off";
    because "rckpt release undoes one rckpt hold, and there was none, or its time was over.";
    remedy "nothing needs to be done: checkpoints are taken";

    PROC_UNREADABLE = 230, "something under /proc cannot be read";
    because "The process has just ended, or /proc is hidden here (hidepid, a container).";
    remedy "see whether the process still runs; run rckpt where the job runs";

    INJECTION_FAILED = 231, "a process could not be asked from inside";
    because "It was killed, or the machine was too busy to stop it in time.";
    remedy "try again; if it stays, please report it";

    NOT_COPIED = 232, "a process could not be copied";
    because "The job's memory is saved from a copy that each process makes of itself (fork). That needs a free \
        process number (ulimit -u) and room for what the job writes meanwhile.";
    remedy "raise the limits on processes and memory, or make room";

    CANNOT_FORK = 233, "rckpt cannot start a process or thread of its own";
    because "The limit on processes (ulimit -u, pids of a container) or on memory is reached.";
    remedy "raise that limit, or end something";

    MACHINE_UNREADABLE = 234, "a fact about this machine cannot be read";
    because "Something that every Linux tells is hidden or cut off here, mostly by a sandbox.";
    remedy "rckpt check shows what this machine allows";
}
