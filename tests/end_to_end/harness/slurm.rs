//! A Slurm cluster of one node on this machine, from the distribution's packages: its own key, ports and
//! directory, nothing shared with another one. The daemons run as the caller, the jobs as the
//! workplace's user. It ends with the test, as every process that descends from it does.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

use super::process::{self, PATIENCE, poll};
use super::workplace::{Workplace, shared_place};

/// Between two questions to the controller.
const BREATH: Duration = Duration::from_millis(100);
/// The name of the one node.
const NODE: &str = "n1";

/// A cluster that runs.
pub struct Cluster<'place> {
    place: &'place Workplace,
    directory: PathBuf,
}

impl<'place> Cluster<'place> {
    /// Starts one, with so many processors and with these lines added to its configuration.
    pub fn start(place: &'place Workplace, processors: usize, more: &str) -> Self {
        let directory = shared_place().join(format!("slurm.{}", std::process::id()));
        for name in ["", "munge", "state", "spool"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).expect("make the cluster's directory");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("open it");
        }
        let cluster = Self { place, directory };
        let key: Vec<u8> = (0..128_u8).map(|byte| byte.wrapping_mul(37) ^ 0x5a).collect();
        cluster.write("munge/key", &key);
        cluster.write("slurm.conf", cluster.configuration(processors, more).as_bytes());
        cluster.start_munge();
        cluster.daemon("slurmctld", &["-D", "-c"]);
        cluster.start_node();
        cluster
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).expect("write a file of the cluster's");
        let mode = if name.ends_with("key") { 0o600 } else { 0o644 };
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(self.path(name), mode).expect("set its permissions");
    }

    fn configuration(&self, processors: usize, more: &str) -> String {
        let host = nix::unistd::gethostname().expect("a host has a name");
        let host = host.to_string_lossy();
        let host = host.split('.').next().unwrap_or_default();
        let user =
            User::from_uid(geteuid()).ok().flatten().expect("the caller has an account").name;
        let at = self.directory.display();
        let (first, second) = (free_port(), free_port());
        format!(
            "ClusterName=rckpt\nSlurmctldHost={host}(127.0.0.1)\n\
             SlurmctldPort={first}\nSlurmdPort={second}\nSlurmUser={user}\nSlurmdUser={user}\n\
             AuthType=auth/munge\nAuthInfo=socket={at}/munge/socket,cred_expire=5\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n\
             JobAcctGatherType=jobacct_gather/none\nSwitchType=switch/none\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\n\
             SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=1\n\
             ReturnToService=2\nSlurmdTimeout=5\nKillWait=2\nMinJobAge=3600\n\
             PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n\
             SlurmdParameters=config_overrides\n\
             NodeName={NODE} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={processors} State=UNKNOWN\n\
             PartitionName=low Nodes={NODE} Default=YES PriorityTier=1 State=UP\n\
             PartitionName=high Nodes={NODE} PriorityTier=10 State=UP\n{more}\n"
        )
    }

    fn start_munge(&self) {
        let file = |option: &str, name: &str| format!("--{option}={}", self.path(name));
        let words = [
            file("key-file", "munge/key"),
            file("socket", "munge/socket"),
            file("pid-file", "munge/pid"),
            file("log-file", "munge/log"),
            file("seed-file", "munge/seed"),
            "--foreground".to_owned(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.daemon("munged", &words);
        let answers = || {
            let socket = format!("--socket={}", self.path("munge/socket"));
            let mut munge = Command::new("munge");
            let munge = munge.args(["--no-input", &socket]).stdout(Stdio::null());
            munge.stderr(Stdio::null()).status().is_ok_and(|status| status.success()).then_some(())
        };
        assert!(poll(PATIENCE, answers).is_some(), "munged does not answer: {}", self.logs());
    }

    /// Starts the node, again or for the first time, and waits until it is ready for jobs.
    pub fn start_node(&self) {
        self.daemon("slurmd", &["-D", "-N", NODE]);
        let ready = || {
            std::thread::sleep(BREATH);
            let states = self.ask("sinfo", &["--noheader", "--format=%T"]);
            states
                .lines()
                .all(|state| state == "idle")
                .then_some(())
                .filter(|()| !states.is_empty())
        };
        assert!(poll(PATIENCE, ready).is_some(), "the node is not ready: {}", self.logs());
    }

    /// The node is lost, with all that runs on it.
    pub fn lose_node(&self) {
        let lost = |pid: &Pid| {
            let name = process::proc_text(*pid, "comm");
            !["slurmctld", "munged"].contains(&name.trim_end())
        };
        // What was just started by one that is killed may be missed the first time.
        for _ in 0..3 {
            for pid in process::descendants(Pid::this()).into_iter().filter(lost) {
                // It may have ended with its parent.
                kill(pid, Signal::SIGKILL).unwrap_or_default();
            }
        }
    }

    /// Starts a daemon, or says what is missing.
    fn daemon(&self, program: &str, words: &[&str]) {
        let found = ["/usr/sbin/", "/usr/local/sbin/"]
            .map(|at| format!("{at}{program}"))
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or(false))
            .unwrap_or_else(|| panic!("{program} is missing: .ci/run installs it"));
        let log = self.place.callers_file(&format!("{program}.words"));
        let mut command = Command::new(found);
        command
            .args(words)
            .env("SLURM_CONF", self.path("slurm.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log);
        self.place.start(&mut command);
    }

    /// A command of Slurm's as the user, in the workplace.
    pub fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = self.place.command(program);
        command.args(words).env("SLURM_CONF", self.path("slurm.conf"));
        command
    }

    fn output(&self, program: &str, words: &[&str]) -> Output {
        let mut command = self.command(program, words);
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// What a command of Slurm's says, asked by the user.
    pub fn ask(&self, program: &str, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.output(program, words).stdout).into_owned()
    }

    /// Has it done, which must succeed.
    pub fn tell(&self, program: &str, words: &[&str]) -> String {
        let output = self.output(program, words);
        assert!(output.status.success(), "{program} {words:?}: {output:?}; {}", self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Submits a script; gives the job's number.
    pub fn submit(&self, words: &[&str], script: &str) -> String {
        self.place.write("script", &format!("#!/bin/sh\n{script}\n"));
        let mut all = vec!["--parsable", "--export=ALL"];
        all.extend(words);
        all.push("script");
        self.tell("sbatch", &all).trim().to_owned()
    }

    /// The state of a job. It is asked for again and again, which keeps a controller busy.
    pub fn state(&self, job: &str) -> String {
        std::thread::sleep(BREATH);
        self.ask("squeue", &["--noheader", "--states=all", "--format=%T", "--jobs", job])
            .trim()
            .to_owned()
    }

    /// How many times a job was started again.
    pub fn restarts(&self, job: &str) -> u32 {
        let facts = self.ask("scontrol", &["show", "job", job]);
        let words = facts.split_ascii_whitespace();
        let number = words.filter_map(|word| word.strip_prefix("Restarts=")).next();
        number.and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// Waits until a job has been started so many times again, and runs.
    pub fn await_restart(&self, job: &str, times: u32) {
        // In this order: a job that was just requeued may have been running when it was asked for.
        let came = poll(PATIENCE * 4, || {
            (self.restarts(job) == times && self.state(job) == "RUNNING").then_some(())
        });
        assert!(came.is_some(), "not started again {times} times: {}", self.logs());
    }

    /// Waits until a job has come to a state.
    pub fn await_state(&self, job: &str, state: &str) {
        let patience = PATIENCE * 4;
        let came = poll(patience, || (self.state(job) == state).then_some(()));
        assert!(came.is_some(), "job {job} is {}, not {state}; {}", self.state(job), self.logs());
    }

    /// What the daemons have to say, for people.
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        format!(
            "slurmctld:\n{}\nslurmd:\n{}\nthe job:\n{}\n",
            tail("slurmctld.log"),
            tail("slurmd.log"),
            self.place.text("err")
        )
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        process::kill_descendants();
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.directory).expect("remove the cluster's directory");
        }
    }
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
    listener.local_addr().expect("it has an address").port()
}
