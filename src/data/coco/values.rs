//! JSON values as annotation files have them: the same number may be written as a number, a string or a truth value.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// A whole number; accepts `7`, `7.0` and `"7"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Integer {
    pub value: i64,
    /// Whether it was written as a string, which the reference does not accept.
    pub was_text: bool,
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer { value, was_text: false })
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Integer, E> {
                let value = i64::try_from(value).map_err(|_| E::custom(format!("{value} is too large")))?;
                Ok(Integer { value, was_text: false })
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Integer, E> {
                // 2^53: above it a float no longer tells neighbouring integers apart.
                if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
                    Ok(Integer { value: value as i64, was_text: false })
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(value), &self))
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Integer, E> {
                let value = text.trim().parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
                Ok(Integer { value, was_text: true })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A flag; accepts 0, 1, any other number as Python's truth value has it, and `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Flag;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("0 or 1")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Flag, E> {
                Ok(Flag(value != 0))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Flag, E> {
                Ok(Flag(value != 0))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Flag, E> {
                Ok(Flag(value != 0.0))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Flag, E> {
                Ok(Flag(false))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Flag, E> {
                match text.trim() {
                    "0" => Ok(Flag(false)),
                    "1" => Ok(Flag(true)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A box as `[x, y, width, height]` in pixels; `None` for null or an empty list.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct BoxValue(pub Option<[f64; 4]>);

impl<'de> Deserialize<'de> for BoxValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = BoxValue;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a box of four numbers [x, y, width, height]")
            }
            fn visit_unit<E: de::Error>(self) -> Result<BoxValue, E> {
                Ok(BoxValue(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<BoxValue, A::Error> {
                let mut sides = [0.0; 4];
                let mut count = 0;
                while let Some(value) = list.next_element::<f64>()? {
                    if let Some(side) = sides.get_mut(count) {
                        *side = value;
                    }
                    count += 1;
                }
                match count {
                    0 => Ok(BoxValue(None)),
                    4 => Ok(BoxValue(Some(sides))),
                    _ => Err(de::Error::invalid_length(count, &self)),
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_may_be_written_as_a_whole_float_or_a_string() {
        let read = |text| serde_json::from_str::<Integer>(text);
        assert_eq!(read("7").unwrap(), Integer { value: 7, was_text: false });
        assert_eq!(read("-7.0").unwrap(), Integer { value: -7, was_text: false });
        assert_eq!(read("\"7\"").unwrap(), Integer { value: 7, was_text: true });
        for wrong in ["7.5", "\"a\"", "null", "[7]", "1e300", "18446744073709551615"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_flag_is_a_truth_value_in_any_spelling() {
        let read = |text| serde_json::from_str::<Flag>(text).map(|flag| flag.0);
        for (text, value) in [("0", false), ("1", true), ("true", true), ("false", false), ("null", false), ("2", true)]
        {
            assert_eq!(read(text).unwrap(), value, "{text}");
        }
        assert!(read("\"yes\"").is_err());
    }

    #[test]
    fn a_box_has_four_numbers_or_none() {
        let read = |text| serde_json::from_str::<BoxValue>(text).map(|b| b.0);
        assert_eq!(read("[1,2.5,3,4]").unwrap(), Some([1.0, 2.5, 3.0, 4.0]));
        assert_eq!(read("[]").unwrap(), None);
        assert_eq!(read("null").unwrap(), None);
        assert!(read("[1,2,3]").unwrap_err().to_string().contains("[x, y, width, height]"));
        assert!(read("[1,2,3,4,5]").is_err());
        assert!(read("[\"1\",2,3,4]").is_err());
    }
}
