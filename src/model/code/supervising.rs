//! What goes wrong around a job that runs.

use super::area;

area! {
    "Supervising a job"

    HOOK_FAILED = 901, "a hook failed";
    because "The program in the hooks' directory could not be run, gave another status than 0, or took too long. A \
        hook before a checkpoint decides whether it is taken.";
    remedy "run it by hand; --hook-limit allows it more time";

    CANNOT_SUPERVISE = 902, "the job cannot be supervised";
    because "The supervisor could not get what it needs (a socket, signals, news of its children), or lost it.";
    remedy "raise the limit on open files (ulimit -n); a job that runs on can be saved with rckpt dump PID";

    NOT_STARTED = 903, "the job could not be started";
    because "A call that prepares its process was refused.";
    remedy "raise the limits on processes and open files (ulimit -u, -n)";

    INTERNAL = 910, "rckpt is in a state that should not be possible";
    because "A mistake in rckpt.";
    remedy "please report it, with the message";

    DEMO_FAILED = 920, "the demonstration did not go as it should";
    because "A checkpoint or a restore of the small job failed; the lines above say why.";
    remedy "rckpt check says what this machine allows, and what to ask the administrator for";
}
