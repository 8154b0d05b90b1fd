//! Process groups over a carrier of bytes, with one thread per rank and a carrier that passes bytes through memory.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_ext::ErrorKind;
use torch_ext::autograd::backward;
use torch_ext::distributed::{
    BucketSizes, Carrier, GlooOptions, ProcessGroup, Reducer, Reduction, StoreOptions, TcpStore,
};

const DEADLINE: Duration = Duration::from_secs(60);
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// What every rank has brought to every round so far.
#[derive(Default)]
struct Table {
    rounds: Mutex<Vec<Vec<Option<Vec<u8>>>>>,
    changed: Condvar,
}

/// One rank's seat at the table.
struct Memory {
    table: Arc<Table>,
    rank: usize,
    size: usize,
    round: AtomicUsize,
    aborted: Arc<AtomicBool>,
}

impl Memory {
    /// Brings bytes to this rank's next round and waits for the others' bytes.
    fn exchange(&self, bytes: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let end = Instant::now() + timeout;
        let mut rounds = self.table.rounds.lock().unwrap();
        if rounds.len() <= round {
            rounds.resize(round + 1, vec![None; self.size]);
        }
        rounds[round][self.rank] = Some(bytes.to_vec());
        self.table.changed.notify_all();
        while rounds[round].iter().any(Option::is_none) {
            if self.aborted.load(Ordering::Relaxed) {
                return Err("aborted".into());
            }
            let left = end.checked_duration_since(Instant::now()).ok_or("a rank did not come")?;
            rounds = self.table.changed.wait_timeout(rounds, left.min(Duration::from_millis(20))).unwrap().0;
        }
        Ok(rounds[round].iter().flatten().cloned().collect())
    }
}

// SAFETY: no buffer is touched after a call returns.
unsafe impl Carrier for Memory {
    fn broadcast(&self, bytes: &mut [u8], root: usize, timeout: Duration) -> Result<(), String> {
        let all = self.exchange(bytes, timeout)?;
        bytes.copy_from_slice(&all[root]);
        Ok(())
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String> {
        output.copy_from_slice(&self.exchange(input, timeout)?.concat());
        Ok(())
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String> {
        let length = input.len() / self.size;
        let all = self.exchange(input, timeout)?;
        let mine = |bytes: &Vec<u8>| bytes[self.rank * length..][..length].to_vec();
        output.copy_from_slice(&all.iter().map(mine).collect::<Vec<_>>().concat());
        Ok(())
    }

    fn barrier(&self, timeout: Duration) -> Result<(), String> {
        self.exchange(&[], timeout).map(|_| ())
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    fn shutdown(&self) -> Result<(), String> {
        self.barrier(DEADLINE)
    }
}

/// libtorch's flight recorder, one for the process, crashes now and then when several ranks of one process record at once.
fn record_nothing() {
    static ONCE: Once = Once::new();
    // SAFETY: every test comes by here before libtorch, the only one to read the environment, has any thread.
    ONCE.call_once(|| unsafe { std::env::set_var("TORCH_FR_BUFFER_SIZE", "0") });
}

fn store(port: u16, listener: Option<TcpListener>) -> TcpStore {
    record_nothing();
    TcpStore::new(StoreOptions {
        host: "127.0.0.1".into(),
        port,
        is_server: listener.is_some(),
        timeout: DEADLINE,
        listener: listener.map(Into::into),
    })
    .unwrap()
}

/// Runs `body` on `size` ranks, each with a group over memory and one over Gloo.
fn on_ranks(size: usize, body: impl Fn(&ProcessGroup, &ProcessGroup) + Sync) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = store(port, Some(listener));
    let table = Arc::new(Table::default());
    std::thread::scope(|scope| {
        for rank in 0..size {
            let (table, body) = (table.clone(), &body);
            scope.spawn(move || {
                let store = store(port, None);
                let round = AtomicUsize::new(0);
                let memory = Memory { table, rank, size, round, aborted: Arc::default() };
                let carried = ProcessGroup::carried(&store, "memory", memory, rank, size, DEADLINE).unwrap();
                let options = GlooOptions { hostname: Some("127.0.0.1".into()), interface: None };
                let gloo = ProcessGroup::gloo(&store, rank, size, DEADLINE, &options).unwrap();
                body(&carried, &gloo);
                carried.shutdown().unwrap();
                gloo.barrier(DEADLINE).unwrap().wait(DEADLINE).unwrap();
            });
        }
    });
    drop(server);
}

/// Pseudo-random values that depend on nothing but `seed`.
fn values(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, FLOAT) + seed as f64 * 0.37) * 12.9898).sin().view(shape)
}

fn reduced(group: &ProcessGroup, value: &Tensor, how: Reduction) -> Tensor {
    let value = value.copy();
    group.all_reduce(&value, how, DEADLINE).unwrap().wait(DEADLINE).unwrap();
    value
}

#[test]
fn collectives_give_the_right_values_for_every_type_with_one_two_and_three_ranks() {
    for size in [1, 2, 3] {
        on_ranks(size, |group, _| {
            let (rank, size) = (group.rank() as i64, group.size() as i64);
            let sum = size * (size - 1) / 2;
            for kind in
                [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int, Kind::Int8, Kind::Uint8]
            {
                // Sizes that do and do not divide by the number of ranks.
                for shape in [&[][..], &[1], &[6], &[7, 3]] {
                    let value = Tensor::full(shape, rank, (kind, Device::Cpu));
                    let full = |number: i64| Tensor::full(shape, number, (kind, Device::Cpu));
                    assert_eq!(reduced(group, &value, Reduction::Sum), full(sum), "{kind:?}");
                    assert_eq!(reduced(group, &value, Reduction::Max), full(size - 1), "{kind:?}");
                    assert_eq!(reduced(group, &(value + 5), Reduction::Min), full(5), "{kind:?}");
                    let value = full(rank + 1);
                    let root = group.size() - 1;
                    group.broadcast(&value, root, DEADLINE).unwrap().wait(DEADLINE).unwrap();
                    assert_eq!(value, full(size), "{kind:?}");
                    let outputs: Vec<_> = (0..size).map(|_| full(100)).collect();
                    group.all_gather(&outputs, &full(rank), DEADLINE).unwrap().wait(DEADLINE).unwrap();
                    for (peer, output) in outputs.iter().enumerate() {
                        assert_eq!(*output, full(peer as i64), "{kind:?}");
                    }
                }
            }
            let mean = reduced(group, &Tensor::full([5], rank, FLOAT), Reduction::Mean);
            assert_eq!(mean, Tensor::full([5], sum as f64 / size as f64, FLOAT));
            let none = Tensor::zeros([0], FLOAT);
            assert_eq!(reduced(group, &none, Reduction::Sum), none);
            group.barrier(DEADLINE).unwrap().wait(DEADLINE).unwrap();

            let x = Tensor::full([3], rank + 1, FLOAT).set_requires_grad(true);
            let total = group.all_reduce_sum_differentiable(&(&x * 2.0)).unwrap();
            let ranks = (size * (size + 1) / 2) as f64;
            assert_eq!(total, Tensor::full([3], 2.0 * ranks, FLOAT));
            backward(&(total * (rank + 1)).sum(Kind::Float)).unwrap();
            assert_eq!(x.grad(), Tensor::full([3], 2.0 * ranks, FLOAT));
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_travels() {
    on_ranks(2, |group, _| {
        let gaps = Tensor::zeros([4, 4], FLOAT).slice(1, 0, 4, 2);
        assert_eq!(group.all_reduce(&gaps, Reduction::Sum, DEADLINE).err().unwrap().kind(), ErrorKind::Invalid);
        let outputs = [Tensor::zeros([2], FLOAT), Tensor::zeros([3], FLOAT)];
        let error = group.all_gather(&outputs, &outputs[0], DEADLINE).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("another size"), "{error}");
    });
}

/// More than one piece of 64 MiB, and an odd number of values. A layout of memory other than the usual is kept.
#[test]
fn large_tensors_travel_in_pieces_and_layouts_are_kept() {
    on_ranks(2, |group, _| {
        let count = (64 << 20) + 5;
        let value = Tensor::full([count], group.rank() as i64 + 1, (Kind::Uint8, Device::Cpu));
        let sum = reduced(group, &value, Reduction::Sum);
        assert_eq!((i64::try_from(sum.min()).unwrap(), i64::try_from(sum.max()).unwrap()), (3, 3));
        let outputs = [value.zeros_like(), value.zeros_like()];
        group.all_gather(&outputs, &value, DEADLINE).unwrap().wait(DEADLINE).unwrap();
        for (output, expected) in outputs.iter().zip([1, 2]) {
            assert!(output.eq(expected).all().int64_value(&[]) == 1);
        }
        group.broadcast(&value, 1, DEADLINE).unwrap().wait(DEADLINE).unwrap();
        assert!(value.eq(2).all().int64_value(&[]) == 1);

        let last = values(&[2, 5, 4, 3], group.rank() as i64).permute([0, 3, 1, 2]);
        let expected = values(&[2, 5, 4, 3], 0).permute([0, 3, 1, 2]) + values(&[2, 5, 4, 3], 1).permute([0, 3, 1, 2]);
        group.all_reduce(&last, Reduction::Sum, DEADLINE).unwrap().wait(DEADLINE).unwrap();
        assert_eq!(last, expected);
    });
}

#[test]
fn two_ranks_get_the_bits_that_gloo_gives() {
    on_ranks(2, |group, gloo| {
        let value = values(&[1013], group.rank() as i64);
        for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
            let value = value.to_kind(kind);
            for how in [Reduction::Sum, Reduction::Mean, Reduction::Min, Reduction::Max] {
                assert_eq!(reduced(group, &value, how), reduced(gloo, &value, how), "{kind:?} {how:?}");
            }
        }
        let [by_carrier, by_gloo] = [group, gloo].map(gradients);
        assert_eq!(by_carrier, by_gloo);
    });
}

/// The gradients of a small net by the reducer, of two steps that must be equal.
fn gradients(group: &ProcessGroup) -> Vec<Tensor> {
    let shapes: [&[i64]; 4] = [&[33, 17], &[33], &[29, 33], &[29]];
    let net: Vec<_> = shapes.iter().zip(0..).map(|(shape, i)| values(shape, i).set_requires_grad(true)).collect();
    let reducer = Reducer::new(group, &net, BucketSizes { first: 512, other: 4096 }).unwrap();
    let x = values(&[8, 17], 100 + group.rank() as i64);
    let [first, second] = [(), ()].map(|()| {
        let hidden = (x.matmul(&net[0].tr()) + &net[1]).tanh();
        let loss = (hidden.matmul(&net[2].tr()) + &net[3]).square().mean(Kind::Float);
        reducer.prepare(&[loss.shallow_clone()]).unwrap();
        backward(&loss).unwrap();
        let gradients: Vec<_> = net.iter().map(|p| p.grad().copy()).collect();
        torch_ext::optim::clear_gradients(&net).unwrap();
        gradients
    });
    assert_eq!(first, second);
    first
}

/// Rank 0 + rank 1 + rank 2, in this order, at every place of the tensor.
#[test]
fn three_ranks_add_up_in_the_order_of_ranks() {
    on_ranks(3, |group, _| {
        let all = [0, 1, 2].map(|rank| values(&[1000], rank));
        let expected = &(&all[0] + &all[1]) + &all[2];
        assert_ne!(expected, &all[0] + &(&all[1] + &all[2]), "the order must matter");
        assert_eq!(reduced(group, &all[group.rank()], Reduction::Sum), expected);
    });
}

#[test]
fn a_rank_that_does_not_come_is_an_error_with_operation_rank_and_deadline() {
    on_ranks(2, |group, gloo| {
        let short = Duration::from_millis(200);
        let come = || gloo.barrier(DEADLINE).unwrap().wait(DEADLINE).unwrap();
        if group.rank() == 1 {
            // Rounds that rank 0 gave up are brought to an end, so that the last barrier meets.
            come();
            for _ in 0..3 {
                group.barrier(DEADLINE).unwrap().wait(DEADLINE).unwrap();
            }
            return;
        }
        let begin = Instant::now();
        let value = Tensor::zeros([4], FLOAT);
        let error = group.all_reduce(&value, Reduction::Sum, short).err().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(error.kind(), ErrorKind::Collective);
        let told = "memory all-reduce number 1 (16 bytes) on rank 0 of 2 with a deadline of 0.2 s: a rank did not come";
        assert_eq!(error.message(), told);

        // The deadline of the group holds for the reducer and in the forward pass.
        group.set_timeout(short).unwrap();
        let error = group.all_reduce_sum_differentiable(&value).err().unwrap();
        assert!(error.message().starts_with("memory all-reduce number 2 (16 bytes)"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Collective);
        let parameter = Tensor::ones([2], FLOAT).set_requires_grad(true);
        let reducer = Reducer::new(group, &[parameter.shallow_clone()], BucketSizes::default()).unwrap();
        let loss = (&parameter * 2.0).sum(Kind::Float);
        reducer.prepare(&[loss.shallow_clone()]).unwrap();
        let error = backward(&loss).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Collective, "{error}");
        std::mem::forget(reducer);
        group.set_timeout(DEADLINE).unwrap();
        come();
    });
}

#[test]
fn an_abort_ends_what_waits() {
    let (table, aborted) = (Arc::new(Table::default()), Arc::new(AtomicBool::new(false)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = store(listener.local_addr().unwrap().port(), Some(listener));
    let memory = Memory { table, rank: 0, size: 2, round: AtomicUsize::new(0), aborted: aborted.clone() };
    let group = ProcessGroup::carried(&store, "memory", memory, 0, 2, DEADLINE).unwrap();
    group.abort(DEADLINE).unwrap();
    let error = group.barrier(DEADLINE).err().unwrap();
    assert!(error.message().ends_with("aborted") && aborted.load(Ordering::Relaxed), "{error}");
}
