//! Tests with one process per rank, as fnet runs them: libtorch's c10d keeps state of the process, such as its flight
//! recorder, that several ranks in threads of one process corrupt.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{BucketSizes, GlooOptions, ProcessGroup, StoreOptions, TcpStore};

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Several buckets even for a small net.
pub const SMALL: BucketSizes = BucketSizes { first: 512, other: 4096 };

/// One process per rank, running the ignored test `body`; rank 0 inherits the store's listening socket.
pub fn start(body: &str, world: usize) -> Vec<Child> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fd = listener.as_raw_fd();
    (0..world)
        .map(|rank| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", body, "--ignored", "--nocapture", "--test-threads=1"]);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
            command.env("MASTER_PORT", port.to_string()).env("OMP_NUM_THREADS", "1");
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            if rank == 0 {
                command.env("STORE_FD", fd.to_string());
                // SAFETY: fcntl is async-signal-safe; the socket is open in the child at this point.
                unsafe {
                    command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                        -1 => Err(std::io::Error::last_os_error()),
                        _ => Ok(()),
                    });
                }
            }
            command.spawn().unwrap()
        })
        .collect()
}

/// Waits for the ranks; one that failed is a panic with all that it wrote.
pub fn finish(children: Vec<Child>) {
    for (rank, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // A name that matches no test would run none and succeed.
        assert!(output.status.success() && told.contains("1 passed"), "rank {rank}, {}: {told}{errors}", output.status);
    }
}

/// A number that [`start`] put into the environment.
pub fn number(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

/// This rank's store and its group over Gloo.
pub fn connect(timeout: Duration) -> (TcpStore, ProcessGroup) {
    let rank = number("RANK");
    // SAFETY: the parent left this socket open for rank 0 alone; nothing else here owns it.
    let listener = std::env::var("STORE_FD").ok().map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) });
    let store = TcpStore::new(StoreOptions {
        host: "127.0.0.1".into(),
        port: u16::try_from(number("MASTER_PORT")).unwrap(),
        is_server: rank == 0,
        timeout: DEADLINE,
        listener,
    })
    .unwrap();
    let options = GlooOptions { hostname: Some("127.0.0.1".into()), interface: None };
    let group = ProcessGroup::gloo(&store, rank, number("WORLD_SIZE"), timeout, &options).unwrap();
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
    ((Tensor::arange(count, FLOAT) + seed as f64 * 0.37) * 12.9898).sin().view(shape)
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
