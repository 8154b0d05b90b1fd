//! Tests with one process per rank, as fnet runs them: libtorch's c10d keeps state of the process, such as its flight
//! recorder, that several ranks in threads of one process corrupt.

mod processes;

use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use fnet_protocol::env;
pub use processes::one_rank;
pub(crate) use processes::rank;
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{BucketSizes, GlooOptions, ProcessGroup, StoreOptions, TcpStore};

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Several buckets even for a small net.
pub const SMALL: BucketSizes = BucketSizes { first: 512, other: 4096 };

/// A number that [`start`] put into the environment.
fn number(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

/// This rank's store and its group over Gloo.
pub fn connect(timeout: Duration) -> (TcpStore, ProcessGroup) {
    let rank = number(env::RANK);
    // SAFETY: the parent left this socket open for rank 0 alone; nothing else here owns it.
    let listener = std::env::var(env::STORE_FD).ok().map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) });
    let store = TcpStore::new(StoreOptions {
        host: "127.0.0.1".into(),
        port: u16::try_from(number(env::MASTER_PORT)).unwrap(),
        is_server: rank == 0,
        timeout: DEADLINE,
        listener,
    })
    .unwrap();
    let options = GlooOptions { hostname: Some("127.0.0.1".into()), interface: None };
    let group = ProcessGroup::gloo(&store, rank, number(env::WORLD_SIZE), timeout, &options).unwrap();
    (store, group)
}

/// Rank 0 serves the store, so it leaves last.
pub fn leave(store: &TcpStore, group: &ProcessGroup) {
    group.barrier(DEADLINE).unwrap().wait(DEADLINE).unwrap();
    let left = store.add("left", 1).unwrap();
    if left == group.size() as i64 {
        store.set("all left", b"").unwrap();
    }
    if group.rank() == 0 {
        store.get("all left", DEADLINE).unwrap();
    }
}

/// Pseudo-random values that depend on nothing but `seed`.
pub fn values(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, FLOAT) + seed as f64 * 0.37) * 12.9898).sin().reshape(shape)
}

/// The parameters of a net of two layers of odd sizes.
pub fn net() -> Vec<Tensor> {
    let shapes: [&[i64]; 4] = [&[33, 17], &[33], &[29, 33], &[29]];
    shapes.iter().zip(0..).map(|(shape, i)| values(shape, i).set_requires_grad(true)).collect()
}

/// The loss of [`net`] for inputs (n, 17).
pub fn loss(net: &[Tensor], x: &Tensor) -> Tensor {
    let hidden = (x.matmul(&net[0].tr()) + &net[1]).tanh();
    (hidden.matmul(&net[2].tr()) + &net[3]).square().mean(Kind::Float)
}

/// Copies of the gradients, which are cleared.
pub fn gradients(net: &[Tensor]) -> Vec<Tensor> {
    let grads = net.iter().map(|p| p.grad().copy()).collect();
    torch_ext::optim::clear_gradients(net).unwrap();
    grads
}
