//! Jobs of a real Slurm with two nodes on this machine, by the script of this repository.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use fnet_protocol::env;

use crate::outputs::{losses, progress};
use crate::processes::free_port;
use crate::support::{Scene, finish, launcher, signal, skip, until};

/// Nodes are called by their addresses, so that no file of this machine has to know their names.
const NODES: [&str; 2] = ["127.0.0.1", "127.0.0.2"];
/// Instead of the script's own options, which are for a large machine.
const SMALL: &str = "--gpus-per-node=0 --cpus-per-task=1 --mem=0 --time=10";
/// Marks what belongs to a node but the job's own processes.
const NODE: &str = "FNET_TEST_NODE";

/// munged, slurmctld, and a slurmd for each node.
struct Slurm {
    scene: Scene,
    daemons: Vec<Child>,
}

impl Slurm {
    /// A scene with an idle Slurm. `None` if Slurm is not installed or must not run.
    fn start() -> Option<Self> {
        let is_missing = |name: &&str| !["/usr/bin", "/usr/sbin"].iter().any(|at| Path::new(at).join(name).exists());
        let missing = ["munged", "slurmctld", "slurmd", "sbatch"].into_iter().find(is_missing);
        let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
        if let Some(why) =
            missing.map(|name| format!("{name} is not installed")).or((!is_root).then(|| "it needs root".into()))
        {
            skip(&why);
            return None;
        }
        let mut slurm = Self { scene: Scene::of(4), daemons: Vec::new() };
        slurm.configure();
        let folder = slurm.path("").display().to_string();
        let line = format!(
            "--force --foreground --key-file={folder}key --socket={folder}munge --pid-file={folder}munge.pid \
             --log-file={folder}munge.log --seed-file={folder}munge.seed"
        );
        slurm.daemon("munged", &line, None);
        until("munged listens", || slurm.path("munge").exists());
        slurm.daemon("slurmctld", "-D", None);
        (0..NODES.len()).for_each(|node| slurm.boot(node));
        until("both nodes are idle", || slurm.ask("sinfo -h -o %t") == "idle");
        Some(slurm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.path("slurm").join(name)
    }

    fn configure(&self) {
        let folder = self.path("");
        fs::create_dir_all(self.path("state")).unwrap();
        fs::write(self.path("key"), [7; 128]).unwrap();
        fs::set_permissions(self.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim().split('.').next().unwrap();
        let ports = [free_port(), free_port(), free_port()];
        let folder = folder.display();
        let nodes: Vec<String> = NODES
            .iter()
            .zip(ports)
            .map(|(name, port)| format!("NodeName={name} CPUs=4 Gres=gpu:2 Port={port}\n"))
            .collect();
        let text = format!(
            "ClusterName=fnet\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={folder}munge\nCredType=cred/munge\nStateSaveLocation={folder}state\n\
             SlurmdSpoolDir={folder}spool.%n\nSlurmctldPidFile={folder}ctld.pid\nSlurmdPidFile={folder}slurmd.%n.pid\n\
             SlurmctldLogFile={folder}ctld.log\nSlurmdLogFile={folder}slurmd.%n.log\nProctrackType=proctrack/linuxproc\n\
             TaskPlugin=task/none\nMpiDefault=none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\n\
             SlurmdParameters=config_overrides\nGresTypes=gpu\nJobAcctGatherType=jobacct_gather/none\nReturnToService=2\n\
             SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0\n{}\
             PartitionName=all Nodes=ALL Default=YES State=UP\n",
            ports[2],
            nodes.concat(),
        );
        fs::write(self.path("slurm.conf"), text).unwrap();
        fs::write(self.path("gres.conf"), "Name=gpu File=/dev/null,/dev/zero\n").unwrap();
    }

    fn daemon(&mut self, program: &str, line: &str, node: Option<usize>) {
        let mut command = self.scene.command(&Path::new("/usr/sbin").join(program), line);
        command.env("SLURM_CONF", self.path("slurm.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(node.map(|node| (NODE, node.to_string())));
        self.daemons.push(command.spawn().unwrap());
    }

    fn boot(&mut self, node: usize) {
        self.daemon("slurmd", &format!("-D -N {}", NODES[node]), Some(node));
    }

    /// Ends all that runs on a node at once, as when its power fails.
    fn crash(&self, node: usize) {
        for mark in [format!("{NODE}={node}"), format!("SLURMD_NODENAME={}", NODES[node])] {
            self.find(&[&mark]).into_iter().for_each(|process| signal(process, "KILL"));
        }
    }

    /// The processes with all of these variables.
    fn find(&self, marks: &[&str]) -> Vec<u32> {
        let has_all = |environment: &str| marks.iter().all(|mark| environment.lines().any(|line| line == *mark));
        self.scene.processes().into_iter().filter(|(_, environment)| has_all(environment)).map(|(id, _)| id).collect()
    }

    /// The output of a command of Slurm, which may fail.
    fn ask(&self, line: &str) -> String {
        let (program, rest) = line.split_once(' ').unwrap();
        let mut command = self.scene.command(Path::new(program), rest);
        let path = format!("{}:{}", launcher().parent().unwrap().display(), std::env::var("PATH").unwrap());
        command.env("SLURM_CONF", self.path("slurm.conf")).env("PATH", path).env_remove(env::JOB_SECRET);
        finish(command).stdout.trim().to_owned()
    }

    /// Submits the script. Returns the number of the job.
    fn submit(&self, options: &str, line: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/slurm/train.sh");
        let job = self.ask(&format!("sbatch --parsable --output=%j.out {options} {} {line}", script.display()));
        assert!(!job.is_empty(), "sbatch {options}");
        job
    }

    /// What Slurm says of a job: `PENDING`, or the number of its restarts.
    fn field(&self, job: &str, name: &str) -> String {
        let text = self.ask(&format!("scontrol --oneliner show job {job}"));
        let found = text.split([' ', '\n']).find_map(|word| word.strip_prefix(&format!("{name}=")));
        found.unwrap_or_default().to_owned()
    }

    /// What a job has printed.
    fn told(&self, job: &str) -> String {
        fs::read_to_string(self.scene.path(&format!("{job}.out"))).unwrap_or_default()
    }

    fn until_in(&self, job: &str, state: &str) {
        until(&format!("job {job} is {state}"), || {
            let is = self.field(job, "JobState");
            let is_over = matches!(&*is, "FAILED" | "COMPLETED" | "TIMEOUT" | "CANCELLED");
            assert!(is == state || !is_over, "job {job} is {is}, not {state}: {}", self.told(job));
            // Each question is a process.
            sleep(Duration::from_millis(if is == state { 0 } else { 50 }));
            is == state
        });
    }

    /// A job that went back into the queue starts soon, not two minutes later. Its last processes may still be ending, after which
    /// Slurm sets the time again; and slurmd refuses a job that comes back in the second in which it has ended.
    fn release(&self, job: &str) {
        self.until_in(job, "PENDING");
        until("the last start is over", || self.find(&[&format!("SLURM_JOB_ID={job}")]).is_empty());
        sleep(Duration::from_secs(1));
        self.ask(&format!("scontrol update JobId={job} StartTime=now+1"));
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.scene.kill_all();
        self.daemons.iter_mut().for_each(|daemon| drop(daemon.wait()));
    }
}

/// FNET_SLURM_STARTS is the number of starts that are interrupted.
#[test]
fn jobs_survive_signals_in_their_first_second_and_a_lost_node_and_mistakes_stay_out_of_the_queue() {
    let Some(mut slurm) = Slurm::start() else { return };
    let folder = slurm.scene.path("work_dirs/cfg");
    let train = "cfg.toml --device cpu --no-validate --set train.epochs";
    let job = slurm.submit(&format!("--nodes=2 {SMALL}"), &format!("{train}=1000"));
    let unlike =
        slurm.submit(&format!("{SMALL} --nodes=1 : {SMALL} --nodes=1"), &format!("{train}=1 --work-dir unlike"));
    // This machine has no GPUs, whatever Slurm believes.
    let wrong =
        slurm.submit(&format!("{SMALL} --nodes=1 --gpus-per-node=2"), "cfg.toml --work-dir wrong --set train.lrr=1");

    let of_job = format!("SLURM_JOB_ID={job}");
    let starts: u64 = std::env::var("FNET_SLURM_STARTS").map_or(2, |count| count.parse().unwrap());
    for start in 0..starts {
        until("fnet-launch runs on the second node", || !slurm.find(&[&of_job, "SLURM_PROCID=1"]).is_empty());
        sleep(Duration::from_millis(1000 * start / starts));
        slurm.ask(&format!("scancel --signal=USR1 {job}"));
        slurm.release(&job);
        assert_eq!(slurm.field(&job, "Restarts"), (start + 1).to_string());
    }

    slurm.until_in(&wrong, "FAILED");
    if !Path::new("/dev/nvidiactl").exists() {
        let told = slurm.told(&wrong);
        assert!(told.contains("no GPU found") && told.contains("CUDA_VISIBLE_DEVICES=0,1"), "{told}");
    }
    slurm.until_in(&unlike, "COMPLETED");
    assert!(slurm.told(&unlike).contains("2 x CPU"), "{}", slurm.told(&unlike));
    assert!(slurm.told(&unlike).contains("with a job secret"), "{}", slurm.told(&unlike));

    let steps =
        || losses(&folder).iter().map(|line| ["epoch", "iter"].map(|name| line[name].as_u64().unwrap())).collect();
    let steps: &dyn Fn() -> Vec<[u64; 2]> = &steps;
    until("some steps are done", || steps().len() > 2);
    slurm.crash(1);
    slurm.ask(&format!("scontrol update NodeName={} State=DOWN Reason=power", NODES[1]));
    slurm.until_in(&job, "PENDING");
    let done = steps().len();
    slurm.boot(1);
    slurm.release(&job);
    until("the job goes on", || steps().len() > done + 1);

    slurm.ask(&format!("scancel {job}"));
    until("the job has ended", || slurm.find(&[&of_job]).is_empty());
    slurm.until_in(&job, "CANCELLED");
    let steps = steps();
    assert!(steps.is_sorted_by(|a, b| a < b), "a step was trained again: {steps:?}");
    assert_eq!(progress(&folder.join("latest.ckpt")), steps.len(), "a step was lost: {steps:?}");
}
