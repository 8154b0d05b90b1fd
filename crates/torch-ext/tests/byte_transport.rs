//! Process groups over a transport of bytes, one that passes bytes through files.

#![allow(clippy::unwrap_used, clippy::panic)]

mod ranks;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ranks::{DEADLINE, FLOAT, SMALL, connect, leave, loss, net, one_rank, rank, values};
use tch::{Device, Kind, Tensor};
use torch_ext::ErrorKind;
use torch_ext::autograd::backward;
use torch_ext::distributed::{BucketSizes, ByteTransport, ProcessGroup, Reducer, Reduction};

/// Each rank brings a file to every round, whole from the moment it has its name, and reads those of the others.
struct Files {
    folder: PathBuf,
    rank: usize,
    size: usize,
    round: AtomicUsize,
    aborted: Arc<AtomicBool>,
}

impl Files {
    fn new(folder: &Path, rank: usize, size: usize) -> Self {
        Self { folder: folder.into(), rank, size, round: AtomicUsize::new(0), aborted: Arc::default() }
    }

    fn file(&self, round: usize, rank: usize) -> PathBuf {
        self.folder.join(format!("{round}-{rank}"))
    }

    /// Brings bytes to this rank's next round and waits for the others' bytes.
    fn exchange(&self, bytes: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let end = Instant::now() + timeout;
        let unnamed = self.folder.join(format!("{round}-{}.part", self.rank));
        std::fs::write(&unnamed, bytes).unwrap();
        std::fs::rename(unnamed, self.file(round, self.rank)).unwrap();
        let mut all = Vec::new();
        while all.len() < self.size {
            match std::fs::read(self.file(round, all.len())) {
                Ok(theirs) => all.push(theirs),
                Err(_) if self.aborted.load(Ordering::Relaxed) => return Err("aborted".into()),
                Err(_) if Instant::now() >= end => return Err("a rank did not come".into()),
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        // All ranks are past the round before.
        if round > 0 {
            std::fs::remove_file(self.file(round - 1, self.rank)).unwrap();
        }
        Ok(all)
    }
}

// SAFETY: no buffer is touched after a call returns.
unsafe impl ByteTransport for Files {
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

/// Runs `body` with this rank's group over files and the one over Gloo.
fn as_rank(body: impl FnOnce(&ProcessGroup, &ProcessGroup)) {
    let (store, gloo) = connect(DEADLINE);
    let (rank, size) = (gloo.rank(), gloo.size());
    let folder = (rank == 0).then(|| tempfile::tempdir().unwrap());
    if let Some(folder) = &folder {
        store.set("folder", folder.path().as_os_str().as_bytes()).unwrap();
    }
    let path = store.get("folder", DEADLINE).unwrap();
    let files = Files::new(Path::new(OsStr::from_bytes(&path)), rank, size);
    let carried = ProcessGroup::carried(&store, "files", files, rank, size, DEADLINE).unwrap();
    body(&carried, &gloo);
    carried.shutdown().unwrap();
    leave(&store, &gloo);
}

/// For sums that nobody watches.
extern "C" fn unwatched(_begins: bool) {}

fn reduced(group: &ProcessGroup, value: &Tensor, how: Reduction) -> Tensor {
    let value = value.copy();
    group.all_reduce(&value, how, DEADLINE).unwrap().wait(DEADLINE).unwrap();
    value
}

#[test]
fn collectives_give_the_right_values_for_every_type_with_one_two_and_three_ranks() {
    let Some(()) = rank!(1, 2, 3) else { return };
    as_rank(|group, _| {
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
        let total = group.all_reduce_sum_differentiable(&(&x * 2.0), unwatched).unwrap();
        let ranks = (size * (size + 1) / 2) as f64;
        assert_eq!(total, Tensor::full([3], 2.0 * ranks, FLOAT));
        backward(&(total * (rank + 1)).sum(Kind::Float)).unwrap();
        assert_eq!(x.grad(), Tensor::full([3], 2.0 * ranks, FLOAT));
    });
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_travels() {
    let Some(()) = rank!(2) else { return };
    as_rank(|group, _| {
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
    let Some(()) = rank!(2) else { return };
    as_rank(|group, _| {
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
    let Some(()) = rank!(2) else { return };
    as_rank(|group, gloo| {
        let value = values(&[1013], group.rank() as i64);
        for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
            let value = value.to_kind(kind);
            for how in [Reduction::Sum, Reduction::Mean, Reduction::Min, Reduction::Max] {
                assert_eq!(reduced(group, &value, how), reduced(gloo, &value, how), "{kind:?} {how:?}");
            }
        }
        let [by_transport, by_gloo] = [group, gloo].map(gradients);
        assert_eq!(by_transport, by_gloo);
    });
}

/// The gradients of a small net by the reducer, of two steps that must be equal.
fn gradients(group: &ProcessGroup) -> Vec<Tensor> {
    let net = net();
    let reducer = Reducer::new(group, &net, SMALL, false).unwrap();
    let x = values(&[8, 17], 100 + group.rank() as i64);
    let [first, second] = [(), ()].map(|()| {
        let loss = loss(&net, &x);
        reducer.backward(&loss, || ()).unwrap();
        ranks::gradients(&net)
    });
    assert_eq!(first, second);
    first
}

/// Rank 0 + rank 1 + rank 2, in this order, at every place of the tensor.
#[test]
fn three_ranks_add_up_in_the_order_of_ranks() {
    let Some(()) = rank!(3) else { return };
    as_rank(|group, _| {
        let all = [0, 1, 2].map(|rank| values(&[1000], rank));
        let expected = &(&all[0] + &all[1]) + &all[2];
        assert_ne!(expected, &all[0] + &(&all[1] + &all[2]), "the order must matter");
        assert_eq!(reduced(group, &all[group.rank()], Reduction::Sum), expected);
    });
}

#[test]
fn a_rank_that_does_not_come_is_an_error_with_operation_rank_and_deadline() {
    let Some(()) = rank!(2) else { return };
    as_rank(|group, gloo| {
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
        let expected =
            "files all-reduce number 1 (16 bytes) on rank 0 of 2 with a deadline of 0.2 s: a rank did not come";
        assert_eq!(error.message(), expected);

        // The deadline of the group holds for the reducer and in the forward pass.
        group.set_timeout(short).unwrap();
        let error = group.all_reduce_sum_differentiable(&value, unwatched).err().unwrap();
        assert!(error.message().starts_with("files all-reduce number 2 (16 bytes)"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Collective);
        let parameter = Tensor::ones([2], FLOAT).set_requires_grad(true);
        let reducer = Reducer::new(group, &[parameter.shallow_clone()], BucketSizes::default(), false).unwrap();
        let loss = (&parameter * 2.0).sum(Kind::Float);
        let error = reducer.backward(&loss, || ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Collective, "{error}");
        std::mem::forget(reducer);
        group.set_timeout(DEADLINE).unwrap();
        come();
    });
}

#[test]
fn an_abort_ends_what_waits() {
    let Some(()) = rank!(1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (store, _gloo) = connect(DEADLINE);
    let files = Files::new(folder.path(), 0, 2);
    let aborted = files.aborted.clone();
    let group = ProcessGroup::carried(&store, "files", files, 0, 2, DEADLINE).unwrap();
    group.abort(DEADLINE).unwrap();
    let error = group.barrier(DEADLINE).err().unwrap();
    assert!(error.message().ends_with("aborted") && aborted.load(Ordering::Relaxed), "{error}");
}
