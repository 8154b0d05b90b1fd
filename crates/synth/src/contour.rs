//! Converts masks to polygons: components, outlines, holes.

/// East, south, west, north, then the diagonals.
const STEPS: [(isize, isize); 8] = [(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)];

/// A binary mask, row-major, at a position in a larger image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mask {
    /// Column of the first pixel in the larger image.
    pub(crate) left: usize,
    /// Row of the first pixel in the larger image.
    pub(crate) top: usize,
    /// Columns.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
    /// Whether each pixel is inside.
    pub(crate) inside: Vec<bool>,
}

impl Mask {
    /// Number of pixels inside.
    pub(crate) fn area(&self) -> usize {
        self.inside.iter().filter(|&&inside| inside).count()
    }

    fn at(&self, x: isize, y: isize) -> bool {
        x >= 0
            && y >= 0
            && (x as usize) < self.width
            && (y as usize) < self.height
            && self.inside[y as usize * self.width + x as usize]
    }

    /// The pixels outside the mask that cannot be reached from the border of its frame without crossing the mask.
    pub(crate) fn holes(&self) -> Self {
        let (width, height) = (self.width + 2, self.height + 2);
        let mut reached = vec![false; width * height];
        reached[0] = true;
        flood(0, (width, height), &STEPS, |next| {
            let is_new = !reached[next] && !self.at((next % width) as isize - 1, (next / width) as isize - 1);
            reached[next] |= is_new;
            is_new
        });
        let inside = (0..self.width * self.height)
            .map(|i| !self.inside[i] && !reached[(i / self.width + 1) * width + i % self.width + 1])
            .collect();
        Self { inside, ..*self }
    }

    /// The 4-connected components of the mask, largest first.
    pub(crate) fn components(&self) -> Vec<Self> {
        let mut seen = vec![false; self.inside.len()];
        let mut parts = Vec::new();
        for start in 0..self.inside.len() {
            if !self.inside[start] || seen[start] {
                continue;
            }
            let mut part = vec![false; self.inside.len()];
            (seen[start], part[start]) = (true, true);
            flood(start, (self.width, self.height), &STEPS[..4], |next| {
                let is_new = self.inside[next] && !seen[next];
                seen[next] |= is_new;
                part[next] |= is_new;
                is_new
            });
            parts.push(Self { inside: part, ..*self });
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.area()));
        parts
    }

    /// The outline of a mask of one component, clockwise through the midpoints of its border's pixel edges, in
    /// coordinates of the larger image. Holes are ignored. Empty for an empty mask.
    pub(crate) fn outline(&self) -> Vec<(f64, f64)> {
        let Some(start) = self.inside.iter().position(|&inside| inside) else { return Vec::new() };
        let start = ((start % self.width) as isize, (start / self.width) as isize);
        // The mask is always on the right.
        // The left and the right pixel ahead of the current corner.
        const AHEAD: [[(isize, isize); 2]; 4] =
            [[(0, -1), (0, 0)], [(0, 0), (-1, 0)], [(-1, 0), (-1, -1)], [(-1, -1), (0, -1)]];
        let ((mut x, mut y), mut direction) = (start, 0);
        let mut points = Vec::new();
        loop {
            let (dx, dy) = STEPS[direction];
            points.push((self.left as f64 + x as f64 + dx as f64 / 2.0, self.top as f64 + y as f64 + dy as f64 / 2.0));
            (x, y) = (x + dx, y + dy);
            let [left, right] = AHEAD[direction].map(|(ax, ay)| self.at(x + ax, y + ay));
            direction = match (left, right) {
                (_, false) => (direction + 1) % 4,
                (true, true) => (direction + 3) % 4,
                (false, true) => direction,
            };
            if (x, y) == start && direction == 0 {
                return points;
            }
        }
    }
}

/// Visits all places of a frame that steps from `start` lead to, through those that `enter` accepts.
fn flood(start: usize, size: (usize, usize), steps: &[(isize, isize)], mut enter: impl FnMut(usize) -> bool) {
    let (width, height) = size;
    let mut open = vec![start];
    while let Some(place) = open.pop() {
        for &(dx, dy) in steps {
            let (x, y) = ((place % width).checked_add_signed(dx), (place / width).checked_add_signed(dy));
            if let (Some(x), Some(y)) = (x.filter(|&x| x < width), y.filter(|&y| y < height))
                && enter(y * width + x)
            {
                open.push(y * width + x);
            }
        }
    }
}

/// Removes points of a closed polygon within `tolerance` of the line through the remaining points (Douglas and Peucker,
/// 1973).
pub(crate) fn simplify(points: &[(f64, f64)], tolerance: f64) -> Vec<(f64, f64)> {
    if points.len() < 4 {
        return points.to_vec();
    }
    let far = (0..points.len())
        .max_by(|&a, &b| squared_distance(points[0], points[a]).total_cmp(&squared_distance(points[0], points[b])))
        .unwrap_or(0);
    let mut closed = points.to_vec();
    closed.push(points[0]);
    let mut kept = vec![false; closed.len()];
    kept[0] = true;
    kept[far] = true;
    let mut open = vec![(0, far), (far, points.len())];
    while let Some((first, last)) = open.pop() {
        let worst = (first + 1..last)
            .map(|i| (line_distance(closed[first], closed[last], closed[i]), i))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((distance, i)) = worst
            && distance > tolerance
        {
            kept[i] = true;
            open.extend([(first, i), (i, last)]);
        }
    }
    (0..points.len()).filter(|&i| kept[i]).map(|i| closed[i]).collect()
}

fn squared_distance(a: (f64, f64), b: (f64, f64)) -> f64 {
    (a.0 - b.0).powi(2) + (a.1 - b.1).powi(2)
}

/// Distance of `point` from the line through `a` and `b`, or from `a` if they coincide.
fn line_distance(a: (f64, f64), b: (f64, f64), point: (f64, f64)) -> f64 {
    let length = squared_distance(a, b).sqrt();
    if length == 0.0 {
        return squared_distance(a, point).sqrt();
    }
    ((b.0 - a.0) * (a.1 - point.1) - (a.0 - point.0) * (b.1 - a.1)).abs() / length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        Mask {
            left: 10,
            top: 20,
            width: rows[0].len(),
            height: rows.len(),
            inside: rows.iter().flat_map(|row| row.chars().map(|c| c == '#')).collect(),
        }
    }

    /// Area by the shoelace formula; positive for a clockwise polygon in image coordinates.
    fn shoelace(points: &[(f64, f64)]) -> f64 {
        (0..points.len())
            .map(|i| {
                let ((x0, y0), (x1, y1)) = (points[i], points[(i + 1) % points.len()]);
                (x0 * y1 - x1 * y0) / 2.0
            })
            .sum()
    }

    #[test]
    fn the_outline_of_a_single_pixel_is_a_diamond() {
        let points = mask(&["#"]).outline();
        assert_eq!(points, [(10.5, 20.0), (11.0, 20.5), (10.5, 21.0), (10.0, 20.5)]);
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_two_components() {
        let parts = mask(&["##.", "##.", "..#"]).components();
        assert_eq!(parts.iter().map(Mask::area).collect::<Vec<_>>(), [4, 1]);
    }

    #[test]
    fn a_bay_that_opens_at_a_corner_is_not_a_hole() {
        assert_eq!(mask(&["####", "#..#", "####"]).holes().area(), 2);
        assert_eq!(mask(&["###.", "#.#.", "##.."]).holes().area(), 0);
    }

    #[test]
    fn simplifying_keeps_the_corners_of_a_rectangle() {
        let square: Vec<(f64, f64)> =
            [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1)].map(|(x, y)| (x.into(), y.into())).into();
        assert_eq!(simplify(&square, 0.1), [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]);
    }

    proptest! {
        #[test]
        fn an_outline_encloses_its_component_up_to_an_eighth_of_a_pixel_per_corner(
            bits in prop::collection::vec(any::<bool>(), 8 * 7)
        ) {
            let whole = Mask { left: 0, top: 0, width: 8, height: 7, inside: bits };
            let parts = whole.components();
            prop_assert_eq!(parts.iter().map(Mask::area).sum::<usize>(), whole.area());
            for part in parts {
                let points = part.outline();
                let enclosed = (part.area() + part.holes().area()) as f64;
                prop_assert!((shoelace(&points) - enclosed).abs() <= points.len() as f64 / 8.0 + 1e-9);
                let simple = simplify(&points, 0.6);
                prop_assert!(simple.iter().all(|p| points.contains(p)));
            }
        }
    }
}
