//! Reading several levels of a pyramid at once, with one backward pass for all of them: for a GPU, whose time goes by calls.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, ErrorKind, RawError, Result, check};
use crate::ffi::{new_tensor, pointer, pointers};

unsafe extern "C" {
    fn fnet_gather_rows(
        levels: *const *mut C_tensor,
        level_count: usize,
        rows: *mut C_tensor,
        flat_rows: *mut C_tensor,
        counts: *const i64,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_twice(tensors: *const *mut C_tensor, count: usize, out: *mut *mut C_tensor) -> *mut RawError;
}

/// Rows `[k, c]` of `levels` (`[n, c, h, w]`), each a table of its places, image by image and row by row. `rows` (`[k]`,
/// int64) are those of the first level, `counts[0]` of them, then those of the second, and so on; `flat_rows` are the same
/// in one table of all levels. Differentiable in the levels.
///
/// # Errors
/// If shapes and counts do not fit.
pub fn gather_rows(levels: &[Tensor], rows: &Tensor, flat_rows: &Tensor, counts: &[i64]) -> Result<Tensor> {
    if counts.len() != levels.len() {
        let message = format!("rows of levels: {} levels and rows of {}", levels.len(), counts.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let levels = pointers(levels);
    // SAFETY: all pointers are valid for the call, and there are as many counts as levels; `out` is written on success.
    new_tensor(|out| unsafe {
        fnet_gather_rows(levels.as_ptr(), levels.len(), pointer(rows), pointer(flat_rows), counts.as_ptr(), out)
    })
}

/// Two handles to each tensor, for two readers; the gradients of both are added in one call for all tensors.
///
/// # Errors
/// If libtorch fails.
pub fn twice(tensors: &[Tensor]) -> Result<[Vec<Tensor>; 2]> {
    let given = pointers(tensors);
    let mut out = vec![std::ptr::null_mut(); 2 * given.len()];
    // SAFETY: the pointers are valid for the call, and `out` has room for twice as many.
    check(unsafe { fnet_twice(given.as_ptr(), given.len(), out.as_mut_ptr()) })?;
    // SAFETY: on success each place holds a new tensor, whose ownership passes to the handle.
    let mut first: Vec<Tensor> = out.into_iter().map(|raw| unsafe { Tensor::from_ptr(raw) }).collect();
    let second = first.split_off(tensors.len());
    Ok([first, second])
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::memory::channels_last;

    fn levels() -> [Tensor; 3] {
        [(4, 5), (2, 3), (1, 2)].map(|(height, width)| {
            let values = Tensor::randn([2, 3, height, width], (Kind::Float, Device::Cpu));
            channels_last(&values).unwrap().set_requires_grad(true)
        })
    }

    #[test]
    fn rows_and_gradients_are_those_of_one_level_after_the_other() {
        let levels = levels();
        // One row twice, and none of the second level.
        let (rows, counts) = ([39_i64, 0, 7, 7, 3, 1], [4, 0, 2]);
        let flat: Vec<i64> = rows.iter().enumerate().map(|(i, row)| row + if i < 4 { 0 } else { 40 + 12 }).collect();
        let found = gather_rows(&levels, &Tensor::from_slice(&rows), &Tensor::from_slice(&flat), &counts).unwrap();
        let tables = levels.each_ref().map(|level| level.permute([0, 2, 3, 1]).reshape([-1, 3]));
        let of = |level: usize, rows: &[i64]| tables[level].index_select(0, &Tensor::from_slice(rows));
        let expected = Tensor::cat(&[of(0, &rows[..4]), of(1, &[]), of(2, &rows[4..])], 0);
        assert_eq!(found, expected);
        let gradients = |rows: Tensor| {
            let loss = (rows.square() * 3.0).sum(Kind::Float);
            Tensor::run_backward(&[loss], &levels.each_ref()[..], false, false)
        };
        assert_eq!(gradients(found), gradients(expected));
        let wrong = gather_rows(&levels, &Tensor::from_slice(&rows), &Tensor::from_slice(&flat), &[4, 0, 1]);
        assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn gradients_of_two_readers_are_added() {
        let levels = levels();
        let [first, second] = twice(&levels).unwrap();
        assert!(
            first.iter().chain(&second).zip(levels.iter().chain(&levels)).all(|(a, b)| a.data_ptr() == b.data_ptr())
        );
        let loss = |a: &[Tensor], b: &[Tensor]| {
            let sum =
                |tensors: &[Tensor], factor: f64| tensors.iter().map(|x| (x * factor).sum(Kind::Float)).sum::<Tensor>();
            // The second reader leaves one level alone.
            let loss = sum(a, 2.0) + sum(&b[1..], 5.0);
            Tensor::run_backward(&[loss], &levels.each_ref()[..], false, false)
        };
        assert_eq!(loss(&first, &second), loss(&levels, &levels));
    }
}
