//! One image: its objects, its pixels, and the visible part of each object.

use crate::contour::Mask;
use crate::object::{Object, Surface};
use crate::options::Options;
use crate::paint::{Background, Color, Light, blend};
use crate::random::Random;
use crate::shape::Class;

/// Purposes of the random streams of an image.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Size,
    Contents,
    Light,
    Grain,
}

/// The random stream of image `image` for one purpose.
fn stream(seed: u64, image: u64, purpose: Purpose) -> Random {
    Random::new(seed, &[image, purpose as u64])
}

/// Width and height of image `image`.
pub(crate) fn size(options: &Options, image: u64) -> (u32, u32) {
    let mut random = stream(options.seed, image, Purpose::Size);
    (random.within(&options.sides), random.within(&options.sides))
}

/// The visible part of an object or crowd.
#[derive(Debug, Clone)]
pub(crate) struct Visible {
    pub(crate) class: Class,
    pub(crate) crowd: bool,
    pub(crate) mask: Mask,
}

/// A finished image.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Rows of red, green, blue.
    pub(crate) pixels: Vec<u8>,
    pub(crate) visible: Vec<Visible>,
}

/// Draws image `image`.
pub(crate) fn draw(options: &Options, image: u64) -> Scene {
    let (width, height) = size(options, image);
    let mut random = stream(options.seed, image, Purpose::Contents);
    let mut canvas = Canvas::new(width as usize, height as usize, &mut random);
    if !random.chance(options.empty) {
        if random.chance(options.crowds) {
            canvas.add_crowd(&mut random);
        }
        for _ in 0..random.within(&options.objects) {
            canvas.add_object(&mut random);
        }
    }
    let visible = canvas.visible();
    let pixels = canvas.develop(
        Light::new(&mut stream(options.seed, image, Purpose::Light)),
        stream(options.seed, image, Purpose::Grain),
    );
    Scene { width: canvas.width, height: canvas.height, pixels, visible }
}

/// Ratio of an object's longer side to the image's shorter side.
const OBJECT_SIZE: (f32, f32) = (0.2, 0.62);
/// The same for the members of a crowd.
const MEMBER_SIZE: (f32, f32) = (0.08, 0.12);
/// Number of positions to try before an object is left out.
const TRIES: usize = 16;
/// Maximum fraction of an object that another object may hide.
const MAX_HIDDEN: f32 = 0.4;
/// Maximum IoU of two boxes, so that NMS does not suppress one of them.
const MAX_BOX_IOU: f32 = 0.35;

/// A drawn object or crowd.
#[derive(Debug, Clone)]
struct Thing {
    class: Class,
    crowd: bool,
    bounds: [f32; 4],
    /// Number of pixels when it was drawn.
    full: usize,
    /// Number of pixels that are still visible.
    seen: usize,
}

/// An image being drawn.
struct Canvas {
    width: usize,
    height: usize,
    colors: Vec<Color>,
    /// For each pixel 0, or the number of the visible object or crowd, from 1.
    owners: Vec<u16>,
    things: Vec<Thing>,
}

/// The pixels of an object and a margin around it, with their distances from its edge.
struct Stamp {
    left: usize,
    top: usize,
    width: usize,
    distances: Vec<f32>,
}

impl Stamp {
    /// Column, row and distance of each pixel.
    fn pixels(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        self.distances.iter().enumerate().map(|(i, &d)| (self.left + i % self.width, self.top + i / self.width, d))
    }
}

impl Canvas {
    fn new(width: usize, height: usize, random: &mut Random) -> Self {
        let side = width.max(height) as f32;
        let background = Background::new(random, side);
        let colors = (0..width * height).map(|i| background.at((i % width) as f32, (i / width) as f32, side)).collect();
        Self { width, height, colors, owners: vec![0; width * height], things: Vec::new() }
    }

    /// Adds an object of a random class and size at a position where it hides little of the others.
    fn add_object(&mut self, random: &mut Random) {
        let class = Class::ALL[random.below(Class::ALL.len())];
        let (small, large) = OBJECT_SIZE;
        let share = small * (large / small).powf(random.unit());
        let length = share * self.width.min(self.height) as f32;
        let object = Object::new(class, length, random);
        let surface = Surface::new(class, random);
        let (half_width, half_height) = (object.size().0 / 2.0, object.size().1 / 2.0);
        for _ in 0..TRIES {
            // Up to a tenth of the object may be outside the image.
            let x = random.between(0.8 * half_width, self.width as f32 - 0.8 * half_width);
            let y = random.between(0.8 * half_height, self.height as f32 - 0.8 * half_height);
            let placed = object.centered(x, y);
            let stamp = self.stamp(&placed);
            if self.admits(&placed, &stamp) {
                self.things.push(Thing { class, crowd: false, bounds: placed.bounds(), full: 0, seen: 0 });
                self.draw(&placed, &surface, &stamp);
                return;
            }
        }
    }

    /// Adds a crowd: many small objects of one class close together.
    fn add_crowd(&mut self, random: &mut Random) {
        let class = Class::ALL[random.below(Class::ALL.len())];
        let side = self.width.min(self.height) as f32;
        let radius = side * random.between(0.14, 0.24);
        let (x, y) =
            (random.between(radius, self.width as f32 - radius), random.between(radius, self.height as f32 - radius));
        let bounds = [x - radius, y - radius, x + radius, y + radius];
        self.things.push(Thing { class, crowd: true, bounds, full: 0, seen: 0 });
        for _ in 0..10 + random.below(8) {
            let object = Object::new(class, side * random.between(MEMBER_SIZE.0, MEMBER_SIZE.1), random);
            let (angle, away) = (random.between(0.0, std::f32::consts::TAU), 0.85 * radius * random.unit().sqrt());
            let placed = object.centered(x + away * angle.cos(), y + away * angle.sin());
            let stamp = self.stamp(&placed);
            self.draw(&placed, &Surface::new(class, random), &stamp);
        }
    }

    /// Computes an object's distances at every pixel of its box and a margin for its shadow.
    fn stamp(&self, object: &Object) -> Stamp {
        const MARGIN: f32 = 4.0;
        let [left, top, right, bottom] = object.bounds();
        let clip = |edge: f32, limit: usize| edge.clamp(0.0, limit as f32) as usize;
        let (x0, x1) = (clip((left - MARGIN).floor(), self.width), clip((right + MARGIN).ceil(), self.width));
        let (y0, y1) = (clip((top - MARGIN).floor(), self.height), clip((bottom + MARGIN).ceil(), self.height));
        let distances =
            (y0..y1).flat_map(|y| (x0..x1).map(move |x| object.distance(x as f32 + 0.5, y as f32 + 0.5))).collect();
        Stamp { left: x0, top: y0, width: x1 - x0, distances }
    }

    /// Whether an object may be drawn: enough of it and of all others stays visible, and its box does not overlap
    /// another box too much.
    fn admits(&self, object: &Object, stamp: &Stamp) -> bool {
        let bounds = object.bounds();
        if self.things.iter().any(|thing| box_iou(&thing.bounds, &bounds) > MAX_BOX_IOU) {
            return false;
        }
        let mut hidden = vec![0usize; self.things.len() + 1];
        for (x, y, distance) in stamp.pixels() {
            if distance < 0.0 {
                hidden[usize::from(self.owners[y * self.width + x])] += 1;
            }
        }
        self.things
            .iter()
            .zip(&hidden[1..])
            .all(|(thing, &hidden)| thing.seen.saturating_sub(hidden) as f32 >= (1.0 - MAX_HIDDEN) * thing.full as f32)
    }

    /// Draws an object as a part of the newest object or crowd.
    fn draw(&mut self, object: &Object, surface: &Surface, stamp: &Stamp) {
        const SHADOW: f32 = 3.0;
        let number = self.things.len();
        for (x, y, distance) in stamp.pixels() {
            let place = y * self.width + x;
            let below = self.colors[place];
            if distance >= 0.5 {
                let shade = 1.0 - 0.35 * (1.0 - distance / SHADOW).max(0.0);
                self.colors[place] = below.map(|c| c * shade);
                continue;
            }
            let (u, v) = object.local(x as f32 + 0.5, y as f32 + 0.5);
            let coverage = (0.5 - distance).min(1.0);
            self.colors[place] = blend(below, surface.at(u, v, -distance), coverage);
            if distance < 0.0 {
                let before = usize::from(std::mem::replace(&mut self.owners[place], number as u16));
                if before == number {
                    continue;
                }
                if before > 0 {
                    self.things[before - 1].seen -= 1;
                }
                self.things[number - 1].full += 1;
                self.things[number - 1].seen += 1;
            }
        }
    }

    /// The visible masks of all objects and crowds that are not completely hidden.
    fn visible(&self) -> Vec<Visible> {
        let mut boxes = vec![(usize::MAX, usize::MAX, 0, 0); self.things.len()];
        for (place, &owner) in self.owners.iter().enumerate() {
            if owner > 0 {
                let (x, y) = (place % self.width, place / self.width);
                let edges = &mut boxes[usize::from(owner) - 1];
                *edges = (edges.0.min(x), edges.1.min(y), edges.2.max(x + 1), edges.3.max(y + 1));
            }
        }
        let cut = |number: usize, (left, top, right, bottom): (usize, usize, usize, usize)| {
            let inside = (top..bottom)
                .flat_map(|y| self.owners[y * self.width..][left..right].iter().map(|&o| usize::from(o) == number + 1))
                .collect();
            Mask { left, top, width: right - left, height: bottom - top, inside }
        };
        (0..self.things.len())
            .filter(|&number| self.things[number].seen > 0)
            .map(|number| Visible {
                class: self.things[number].class,
                crowd: self.things[number].crowd,
                mask: cut(number, boxes[number]),
            })
            .collect()
    }

    /// Applies light and camera noise to the pixels.
    fn develop(&self, light: Light, mut random: Random) -> Vec<u8> {
        let grain = random.between(1.5, 7.0);
        let mut pixels = Vec::with_capacity(3 * self.colors.len());
        for (place, color) in self.colors.iter().enumerate() {
            let x = (place % self.width) as f32 / self.width as f32 - 0.5;
            let y = (place / self.width) as f32 / self.height as f32 - 0.5;
            let factors = light.at(x, y);
            let common = random.normal();
            for channel in 0..3 {
                let noise = grain * (0.7 * common + 0.5 * random.normal());
                pixels.push((255.0 * color[channel] * factors[channel] + noise).round().clamp(0.0, 255.0) as u8);
            }
        }
        pixels
    }
}

/// Intersection over union of two boxes.
fn box_iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let overlap = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0) * (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let area = |edges: &[f32; 4]| (edges[2] - edges[0]) * (edges[3] - edges[1]);
    overlap / (area(a) + area(b) - overlap)
}
