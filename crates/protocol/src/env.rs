//! Environment variables of workers, and those that users set.
//!
//! The first group follows PyTorch (`torchrun` sets the same); variables that start with `FNET_` are specific to fnet.

/// Rank of this worker in the job, from 0.
pub const RANK: &str = "RANK";
/// Rank of this worker on its node, from 0.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// Number of workers in the job.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Number of workers on this node.
pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// Rank of this node in the job, from 0, as `torchrun` sets it.
pub const GROUP_RANK: &str = "GROUP_RANK";
/// Host name or address of the store, on the node of rank 0.
pub const MASTER_ADDR: &str = "MASTER_ADDR";
/// TCP port of the store. In the environment of the launcher: the port to use with several nodes.
pub const MASTER_PORT: &str = "MASTER_PORT";
/// Descriptor of the listening socket, bound to `MASTER_PORT`, that rank 0 inherits for the store.
pub const STORE_FD: &str = "FNET_STORE_FD";
/// Descriptor of the inherited Unix stream socket of the control channel (see [`crate::message`]).
pub const CONTROL: &str = "FNET_CONTROL";
/// Descriptor of the inherited memory file of the worker's status (see [`crate::status`]).
pub const STATUS_FD: &str = "FNET_STATUS_FD";
/// Number of restarts of this job so far.
pub const RESTART_COUNT: &str = "FNET_RESTART_COUNT";
/// The generation that this attempt has of the work folder ([`crate::generation`]).
pub const GENERATION: &str = "FNET_GENERATION";
/// Number of workers if all nodes of `--nnodes MIN:MAX` were there; only set with MIN:MAX.
pub const FULL_WORLD_SIZE: &str = "FNET_FULL_WORLD_SIZE";
/// The links between several nodes ([`crate::links::Links`] as JSON), for rank 0 of `benchmark comm`.
pub const LINKS: &str = "FNET_LINKS";
/// Device of a worker, `cuda` or `cpu`. Unset: CUDA if the worker sees a GPU, else the CPU.
pub const DEVICE: &str = "FNET_DEVICE";
/// Verbosity: `-1` quiet, `0` normal, `1` and more verbose.
pub const VERBOSITY: &str = "FNET_VERBOSITY";
/// Number of workers of a hypothetical job: a worker that finds it only prints what `train` or `test` would do
/// ([`crate::estimate::Estimate`]).
pub const DRY_RUN: &str = "FNET_DRY_RUN";
/// Set by torchrun: its agent serves the store, and rank 0 is a client like the others.
pub const TORCHELASTIC_USE_AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// Indices or UUIDs of the GPUs that a process sees.
pub const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// Folders of libraries; `fnet-launch --libtorch` puts one before them for the workers.
pub const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
/// What [`LIBRARY_PATH`] was before that, for other programs that a worker starts; unset without `--libtorch`.
pub const LIBRARY_PATH_BEFORE: &str = "FNET_LIBRARY_PATH_BEFORE";
/// Settings of the C library; the launcher tunes the allocator of CPU workers unless the user has set them.
pub const GLIBC_TUNABLES: &str = "GLIBC_TUNABLES";
/// Settings of libtorch's allocator for GPUs; the launcher sets them for GPU workers unless the user has set it or its older name.
pub const PYTORCH_ALLOC_CONF: &str = "PYTORCH_ALLOC_CONF";
/// Older name of [`PYTORCH_ALLOC_CONF`].
pub const PYTORCH_CUDA_ALLOC_CONF: &str = "PYTORCH_CUDA_ALLOC_CONF";
/// Threads per worker; set to cores / workers unless the user has set it.
pub const OMP_NUM_THREADS: &str = "OMP_NUM_THREADS";

/// Number of nodes (default of `--nnodes`).
pub const NNODES: &str = "NNODES";
/// Rank of this node (default of `--node-rank`).
pub const NODE_RANK: &str = "NODE_RANK";
/// Port of the store in dist_train.sh; read only with several nodes and without `MASTER_PORT`.
pub const PORT: &str = "PORT";
/// Secret that all launchers of a job on several nodes know; `--secret-file` takes precedence.
pub const JOB_SECRET: &str = "FNET_JOB_SECRET";
/// `host:port` of node 0 in the pods of an elastic job of Kubernetes' training operator.
pub const PET_RDZV_ENDPOINT: &str = "PET_RDZV_ENDPOINT";
/// Number of workers of each node in the pods of Kubernetes' training operators: a number, `auto`, `cpu` or `gpu`.
pub const PET_NPROC_PER_NODE: &str = "PET_NPROC_PER_NODE";
/// Number of a pod of an indexed job of Kubernetes (default of `--node-rank`, after `NODE_RANK`).
pub const JOB_COMPLETION_INDEX: &str = "JOB_COMPLETION_INDEX";
/// Number of a node in a Slurm job (default of `--node-rank`, after `NODE_RANK`).
pub const SLURM_NODEID: &str = "SLURM_NODEID";
/// Number of nodes of a Slurm job; several are refused if nothing says how they meet.
pub const SLURM_NNODES: &str = "SLURM_NNODES";
/// Number of tasks that srun has started.
pub const SLURM_STEP_NUM_TASKS: &str = "SLURM_STEP_NUM_TASKS";
/// Number of nodes on which srun has started them (default of `--nnodes`, after `NNODES`, if each has one).
pub const SLURM_STEP_NUM_NODES: &str = "SLURM_STEP_NUM_NODES";
/// Network interface of Gloo; set from `--iface` unless the user has set it.
pub const GLOO_SOCKET_IFNAME: &str = "GLOO_SOCKET_IFNAME";
/// Network interface of NCCL; set from `--iface` unless the user has set it.
pub const NCCL_SOCKET_IFNAME: &str = "NCCL_SOCKET_IFNAME";
/// Path of the worker to start instead of the `fnet-worker` beside the launcher or on PATH.
pub const WORKER: &str = "FNET_WORKER";
/// Path of the MPI library of a worker under mpirun, instead of the `libfnet_mpi.so` beside it.
pub const MPI_LIBRARY: &str = "FNET_MPI_LIBRARY";
/// Base folder of relative data set paths, instead of `data/coco`.
pub const DATA_ROOT: &str = "FNET_DATA_ROOT";

/// Whether [`VERBOSITY`] asks for results and errors only.
pub fn is_quiet() -> bool {
    std::env::var(VERBOSITY).is_ok_and(|level| level.starts_with('-'))
}
