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
        inside: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_rectify(tensors: *const *mut C_tensor, count: usize) -> *mut RawError;
    fn fnet_twice(tensors: *const *mut C_tensor, count: usize, out: *mut *mut C_tensor) -> *mut RawError;
}

/// Which rows of which levels.
#[derive(Debug)]
pub struct Rows<'a> {
    /// `[k]` int64: rows of the first level, then those of the second, and so on.
    pub rows: Tensor,
    /// The same in one table of all levels, whose number of rows stands for a row outside.
    pub flat_rows: Tensor,
    /// How many each level has.
    pub counts: &'a [i64],
    /// `[k, 1]`: 1, or 0 for a row outside, which is read as zeros; none if all are inside.
    pub inside: Option<Tensor>,
}

/// Rows `[k, c]` of `levels` (`[n, c, h, w]`), each a table of its places, image by image and row by row. Differentiable in the
/// levels.
/// Errors: if shapes and counts do not fit.
pub fn gather_rows(levels: &[Tensor], given: &Rows<'_>) -> Result<Tensor> {
    let Rows { rows, flat_rows, counts, inside } = given;
    if counts.len() != levels.len() {
        let message = format!("rows of levels: {} levels and rows of {}", levels.len(), counts.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let levels = pointers(levels);
    let inside = inside.as_ref().map_or(std::ptr::null_mut(), pointer);
    // SAFETY: all pointers are valid for the call, the factors may be null, and there are as many counts as levels; `out` is
    // written on success.
    new_tensor(|out| unsafe {
        fnet_gather_rows(levels.as_ptr(), levels.len(), pointer(rows), pointer(flat_rows), counts.as_ptr(), inside, out)
    })
}

/// Rectifies all tensors in place, in one call.
pub fn rectify(tensors: &[Tensor]) -> Result<()> {
    let tensors = pointers(tensors);
    // SAFETY: the pointers are valid for the call.
    check(unsafe { fnet_rectify(tensors.as_ptr(), tensors.len()) })
}

/// Two handles to each tensor, for two readers; the gradients of both are added in one call for all tensors.
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
        let tables = levels.each_ref().map(|level| level.permute([0, 2, 3, 1]).reshape([-1, 3]));
        let of = |level: usize, rows: &[i64]| tables[level].index_select(0, &Tensor::from_slice(rows));
        let gradients = |rows: Tensor| {
            let loss = ((rows.square() + 1.0) * &rows * 3.0).sum(Kind::Float);
            Tensor::run_backward(&[loss], &levels.each_ref()[..], false, false)
        };
        for outside in [None, Some(2)] {
            let flat = rows.iter().enumerate().map(|(i, row)| match i {
                i if Some(i) == outside => 40 + 12 + 4,
                i if i < 4 => *row,
                _ => row + 40 + 12,
            });
            let inside: Vec<f32> = (0..6).map(|i| if Some(i) == outside { 0.0 } else { 1.0 }).collect();
            let factors = Tensor::from_slice(&inside).reshape([6, 1]);
            let given = |counts| Rows {
                rows: Tensor::from_slice(&rows),
                flat_rows: Tensor::from_slice(&flat.clone().collect::<Vec<i64>>()),
                counts,
                inside: outside.map(|_| factors.shallow_clone()),
            };
            let found = gather_rows(&levels, &given(&counts)).unwrap();
            let expected = Tensor::cat(&[of(0, &rows[..4]), of(1, &[]), of(2, &rows[4..])], 0) * &factors;
            assert_eq!(found, expected);
            assert_eq!(gradients(found), gradients(expected));
            let wrong = gather_rows(&levels, &given(&[4, 0, 1]));
            assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn all_tensors_are_rectified_as_one_by_one() {
        let tensors = levels().map(|level| level.detach().copy());
        let expected = tensors.each_ref().map(Tensor::relu);
        rectify(&tensors).unwrap();
        assert_eq!(tensors, expected);
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
