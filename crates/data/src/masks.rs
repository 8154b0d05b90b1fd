//! Instance masks: from polygons or run lengths to windows of the resized image, and to training targets.

use std::sync::Arc;

use hotcoco::types::Rle;

use super::batch::InstanceMask;
use super::coco::Segmentation;
use super::resize::nearest;

/// The mask of `segmentation` in an image of `size` (height, width), neither resized nor flipped.
/// Errors: a message about the segmentation, without its location.
pub fn rasterize(segmentation: &Segmentation, size: (usize, usize)) -> Result<InstanceMask, String> {
    Ok(instance_mask(&segmentation.to_rle(size)?, size, false, size))
}

/// The mask `rle` resized to `resized` (height, width) by nearest neighbor, flipped if `flip`, and zero-padded to
/// `padded` (height, width), like `rescale`, `flip` and `pad` of MMDetection's `BitmapMasks`. Only the window with
/// foreground pixels is computed.
pub fn instance_mask(rle: &Rle, resized: (usize, usize), flip: bool, padded: (usize, usize)) -> InstanceMask {
    MaskPlan::new((rle.h as usize, rle.w as usize), resized, flip, padded).mask(rle)
}

/// A plan for the masks of one image. All sizes are (height, width).
pub(super) struct MaskPlan {
    size: (usize, usize),
    resized: (usize, usize),
    flip: bool,
    padded: (usize, usize),
    /// Rows `row_start[y0]..row_start[y1]` of the result come from rows `y0..y1`, and likewise for columns.
    row_start: Vec<usize>,
    column_start: Vec<usize>,
}

impl MaskPlan {
    /// A plan for masks of images of `size`. The other arguments are as in [`instance_mask`].
    pub fn new(size: (usize, usize), resized: (usize, usize), flip: bool, padded: (usize, usize)) -> Self {
        let row_start = first_destinations(size.0, resized.0);
        let column_start = first_destinations(size.1, resized.1);
        Self { size, resized, flip, padded, row_start, column_start }
    }

    /// The mask `rle`, which has the plan's size.
    pub fn mask(&self, rle: &Rle) -> InstanceMask {
        let empty = InstanceMask { frame: self.padded, x: 0, y: 0, width: 0, height: 0, pixels: Arc::from([]) };
        let spans = column_spans(&rle.counts, self.size.0, self.size.1);
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return empty };
        let (top, bottom) =
            spans.iter().fold((usize::MAX, 0), |(top, bottom), span| (top.min(span.start), bottom.max(span.end)));
        let rows = self.row_start[top]..self.row_start[bottom];
        let columns = self.column_start[first.column]..self.column_start[last.column + 1];
        if rows.is_empty() || columns.is_empty() {
            return empty;
        }
        let (height, width) = (rows.len(), columns.len());
        let mut pixels: Arc<[u8]> = std::iter::repeat_n(0, height * width).collect();
        if let Some(pixels) = Arc::get_mut(&mut pixels) {
            for span in &spans {
                let (y0, y1) = (self.row_start[span.start] - rows.start, self.row_start[span.end] - rows.start);
                let x0 = self.column_start[span.column] - columns.start;
                let x1 = self.column_start[span.column + 1] - columns.start;
                let (x0, x1) = if self.flip { (width - x1, width - x0) } else { (x0, x1) };
                // Marks where a column enters or leaves the mask.
                for y in [y0, y1].into_iter().filter(|&y| y < height) {
                    pixels[y * width + x0..y * width + x1].iter_mut().for_each(|pixel| *pixel ^= 1);
                }
            }
            fill_down(pixels, width);
        }
        let x = if self.flip { self.resized.1 - columns.end } else { columns.start };
        InstanceMask { frame: self.padded, x, y: rows.start, width, height, pixels }
    }
}

/// Converts marks of changes to pixels: each row toggles the row above.
fn fill_down(pixels: &mut [u8], width: usize) {
    let mut rest = pixels;
    while rest.len() >= 2 * width {
        let (above, below) = rest.split_at_mut(width);
        above.iter().zip(&mut below[..width]).for_each(|(above, pixel)| *pixel ^= above);
        rest = below;
    }
}

/// Foreground rows `start..end` of one column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ColumnSpan {
    column: usize,
    start: usize,
    end: usize,
}

/// The foreground of column-major runs, column by column, without runs beyond the frame.
fn column_spans(counts: &[u32], height: usize, width: usize) -> Vec<ColumnSpan> {
    let mut spans = Vec::new();
    let end_of_frame = height * width;
    let mut position = 0usize;
    for (i, &count) in counts.iter().enumerate() {
        let end = position.saturating_add(count as usize).min(end_of_frame);
        if i % 2 == 1 {
            let mut at = position;
            while at < end {
                let column = at / height;
                let stop = end.min((column + 1) * height);
                spans.push(ColumnSpan { column, start: at - column * height, end: stop - column * height });
                at = stop;
            }
        }
        position = end;
    }
    spans
}

/// For each source position, and one past the last, the first destination position that uses it or a later one.
pub(super) fn first_destinations(source: usize, target: usize) -> Vec<usize> {
    let taken = nearest(source, target);
    let mut starts = vec![target; source + 1];
    for (destination, &position) in taken.iter().enumerate().rev() {
        starts[position] = destination;
    }
    for position in (0..source).rev() {
        starts[position] = starts[position].min(starts[position + 1]);
    }
    starts
}

/// Training targets of the mask head: mask `i` inside box `i`, `size * size` values of 0 or 1 each, row-major.
///
/// The box, `[x1, y1, x2, y2]` in pixels of the padded image, is clipped to the mask's frame. The bitmap is pooled by
/// RoIAlign (half-pixel aligned, as many samples per bin as it has pixels, average). A value is 1 if the average is at
/// least 0.5, as in MMDetection's `BitmapMasks.crop_and_resize`.
///
/// # Panics
/// If the numbers of masks and boxes differ.
pub fn mask_targets(masks: &[&InstanceMask], boxes: &[[f32; 4]], size: usize) -> Vec<u8> {
    assert_eq!(masks.len(), boxes.len(), "one mask per box");
    let mut targets = vec![0; masks.len() * size * size];
    // Many boxes share a mask and its pixel sums.
    let mut order: Vec<usize> = (0..masks.len()).collect();
    order.sort_by_key(|&i| masks[i].pixels.as_ptr());
    for group in order.chunk_by(|&a, &b| masks[a] == masks[b]) {
        let sums = AreaTable::new(masks[group[0]]);
        for &i in group {
            mask_target(&sums, boxes[i], size, &mut targets[i * size * size..(i + 1) * size * size]);
        }
    }
    targets
}

/// Two neighboring pixels and their weights for one sample along one axis; `None` outside the frame.
type Sample = Option<([usize; 2], [f32; 2])>;

/// The samples of every bin along one axis, `per_bin` each.
fn axis_samples(start: f32, length: f32, bins: usize, limit: usize) -> (Vec<Sample>, usize) {
    let bin = length / bins as f32;
    let per_bin = bin.ceil().max(0.0) as usize;
    let sample = |bin_index: usize, i: usize| {
        let position = start + bin_index as f32 * bin + (i as f32 + 0.5) * bin / per_bin as f32;
        if position < -1.0 || position > limit as f32 || limit == 0 {
            return None;
        }
        let position = position.max(0.0);
        let low = position as usize;
        if low >= limit - 1 {
            return Some(([limit - 1; 2], [1.0, 0.0]));
        }
        let fraction = position - low as f32;
        Some(([low, low + 1], [1.0 - fraction, fraction]))
    };
    ((0..bins).flat_map(|b| (0..per_bin).map(move |i| (b, i))).map(|(b, i)| sample(b, i)).collect(), per_bin)
}

fn mask_target(sums: &AreaTable<'_>, [x1, y1, x2, y2]: [f32; 4], size: usize, targets: &mut [u8]) {
    let mask = sums.mask;
    let (height, width) = mask.frame;
    let (x1, x2) = (x1.clamp(0.0, width as f32) - 0.5, x2.clamp(0.0, width as f32) - 0.5);
    let (y1, y2) = (y1.clamp(0.0, height as f32) - 0.5, y2.clamp(0.0, height as f32) - 0.5);
    let (rows, rows_per_bin) = axis_samples(y1, y2 - y1, size, height);
    let (columns, columns_per_bin) = axis_samples(x1, x2 - x1, size, width);
    let count = (rows_per_bin * columns_per_bin).max(1) as f32;
    for bin_row in 0..size {
        let rows = &rows[bin_row * rows_per_bin..(bin_row + 1) * rows_per_bin];
        for bin_column in 0..size {
            let columns = &columns[bin_column * columns_per_bin..(bin_column + 1) * columns_per_bin];
            let set = sums.uniform(rows, columns).unwrap_or_else(|| bin_sum(mask, rows, columns) / count >= 0.5);
            targets[bin_row * size + bin_column] = u8::from(set);
        }
    }
}

/// The sum of the samples of one bin, in the order of MMDetection's kernel, so that averages near 0.5 do not differ.
fn bin_sum(mask: &InstanceMask, rows: &[Sample], columns: &[Sample]) -> f32 {
    let pixel = |y: usize, x: usize| {
        let (row, column) = (y.wrapping_sub(mask.y), x.wrapping_sub(mask.x));
        if row < mask.height && column < mask.width { f32::from(mask.pixels[row * mask.width + column]) } else { 0.0 }
    };
    let mut sum = 0.0;
    for ([y0, y1], [hy, ly]) in rows.iter().flatten() {
        for ([x0, x1], [hx, lx]) in columns.iter().flatten() {
            sum += hy * hx * pixel(*y0, *x0)
                + hy * lx * pixel(*y0, *x1)
                + ly * hx * pixel(*y1, *x0)
                + ly * lx * pixel(*y1, *x1);
        }
    }
    sum
}

/// Summed-area table of a mask's window. Most bins are completely inside or outside the mask and need no samples.
struct AreaTable<'m> {
    mask: &'m InstanceMask,
    sums: Vec<u32>,
}

impl<'m> AreaTable<'m> {
    fn new(mask: &'m InstanceMask) -> Self {
        let stride = mask.width + 1;
        let mut sums = vec![0u32; stride * (mask.height + 1)];
        for (y, row) in mask.pixels.chunks_exact(mask.width.max(1)).enumerate() {
            let (above, below) = sums[y * stride..].split_at_mut(stride);
            let mut sum = 0;
            for ((&pixel, above), below) in row.iter().zip(&above[1..]).zip(&mut below[1..]) {
                sum += u32::from(pixel);
                *below = sum + above;
            }
        }
        Self { mask, sums }
    }

    /// Whether the bin of these samples is set, if all pixels that they touch are equal. The average is then 0, or 1 up
    /// to rounding.
    fn uniform(&self, rows: &[Sample], columns: &[Sample]) -> Option<bool> {
        let (Some(y), Some(x)) = (extent(rows), extent(columns)) else { return Some(false) };
        let window = |limits: [usize; 2], start: usize, length: usize| {
            limits.map(|limit| limit.saturating_sub(start).min(length))
        };
        let [top, bottom] = window([y.0, y.1 + 1], self.mask.y, self.mask.height);
        let [left, right] = window([x.0, x.1 + 1], self.mask.x, self.mask.width);
        let sum = |y: usize, x: usize| self.sums[y * (self.mask.width + 1) + x];
        let inside = (sum(bottom, right) + sum(top, left) - sum(top, right) - sum(bottom, left)) as usize;
        let whole = rows.iter().all(Option::is_some) && columns.iter().all(Option::is_some);
        match inside {
            0 => Some(false),
            _ if whole && inside == (y.1 + 1 - y.0) * (x.1 + 1 - x.0) => Some(true),
            _ => None,
        }
    }
}

/// The first and last pixel that samples touch.
fn extent(samples: &[Sample]) -> Option<(usize, usize)> {
    let mut touched = samples.iter().flatten();
    let &([first, last], _) = touched.next()?;
    Some((first, touched.last().map_or(last, |&([_, high], _)| high)))
}

#[cfg(test)]
mod tests;
