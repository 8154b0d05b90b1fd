//! Element types of NumPy.

use tch::Kind;

/// An element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dtype {
    /// `f`, `i`, `u` or `b`; others are not supported.
    pub(super) class: char,
    /// Bytes of an element.
    pub(super) width: usize,
    pub(super) big_endian: bool,
}

impl Dtype {
    /// Reads a code such as `f8` or `<i4`.
    pub(super) fn parse(code: &str) -> Self {
        let (order, code) = match code.chars().next() {
            Some(order @ ('<' | '>' | '=' | '|')) => (order, &code[1..]),
            _ => ('=', code),
        };
        let class = code.chars().next().unwrap_or(' ');
        let width = code.get(class.len_utf8()..).and_then(|width| width.parse().ok()).unwrap_or(0);
        Self { class, width, big_endian: order == '>' }
    }

    pub(super) fn with_order(self, order: &str) -> Self {
        Self { big_endian: order == ">", ..self }
    }

    pub(super) fn kind(self) -> Option<Kind> {
        if self.big_endian && self.width > 1 {
            return None;
        }
        Some(match (self.class, self.width) {
            ('f', 2) => Kind::Half,
            ('f', 4) => Kind::Float,
            ('f', 8) => Kind::Double,
            ('i', 1) => Kind::Int8,
            ('i', 2) => Kind::Int16,
            ('i', 4) => Kind::Int,
            ('i', 8) => Kind::Int64,
            ('u', 1) => Kind::Uint8,
            ('b', 1) => Kind::Bool,
            _ => return None,
        })
    }
}
