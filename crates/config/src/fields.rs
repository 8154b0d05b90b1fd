//! The list of all config fields, from the schema of the structs: path, type, bounds and meaning.

use std::sync::OnceLock;

use indexmap::IndexMap;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use super::tree::join;
use super::{Config, Interval};

/// A field or a section of the config.
#[derive(Debug, Clone)]
pub(super) struct Field {
    /// The doc comment of the struct's field.
    pub description: String,
    /// The JSON schema of a value. `None` for a section.
    pub schema: Option<Json>,
    /// Whether a list of tables may stand in place of the section.
    pub several: bool,
}

impl Field {
    /// The tables of a list that stands in place of the section.
    pub fn tables<'v>(&self, value: &'v toml::Value) -> Option<Vec<&'v toml::Table>> {
        let items = value.as_array().filter(|items| self.several && !items.is_empty())?;
        items.iter().map(toml::Value::as_table).collect()
    }
}

/// Every section and field by dotted path, in declaration order.
pub(super) fn all() -> &'static IndexMap<String, Field> {
    static FIELDS: OnceLock<IndexMap<String, Field>> = OnceLock::new();
    FIELDS.get_or_init(|| {
        let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
        let root = settings.into_generator().into_root_schema_for::<Config>().to_value();
        let mut fields = IndexMap::new();
        collect(&root, "", &mut fields);
        fields
    })
}

fn collect(section: &Json, prefix: &str, out: &mut IndexMap<String, Field>) {
    let Some(properties) = section.get("properties").and_then(Json::as_object) else { return };
    for (name, property) in properties {
        let path = join(prefix, name);
        let description = property.get("description").and_then(Json::as_str).unwrap_or_default().replace('\n', " ");
        if property.get("properties").is_some() {
            let several = property.get("several").is_some();
            out.insert(path.clone(), Field { description, schema: None, several });
            collect(property, &path, out);
        } else {
            out.insert(path, Field { description, schema: Some(property.clone()), several: false });
        }
    }
}

/// The values that an enum allows, with their meanings. Empty for other types.
pub(super) fn choices(schema: &Json) -> Vec<(String, String)> {
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        return values.iter().filter_map(Json::as_str).map(|value| (value.to_owned(), String::new())).collect();
    }
    let variants = schema.get("oneOf").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    variants
        .iter()
        .filter_map(|variant| {
            let meaning = variant.get("description").and_then(Json::as_str).unwrap_or_default().replace('\n', " ");
            Some((variant.get("const")?.as_str()?.to_owned(), meaning))
        })
        .collect()
}

/// A kind of the tables in a list.
pub(super) struct Kind<'s> {
    /// The value of its field `kind`.
    pub name: &'s str,
    /// What it does.
    pub description: String,
    /// Its other fields with their schemas.
    pub fields: Vec<(&'s str, &'s Json)>,
}

/// The kinds that a list of tables allows. Empty for other lists.
pub(super) fn kinds(schema: &Json) -> Vec<Kind<'_>> {
    let variants = schema.get("items").and_then(|items| items.get("oneOf")).and_then(Json::as_array);
    variants.into_iter().flatten().filter_map(kind_of).collect()
}

fn kind_of(variant: &Json) -> Option<Kind<'_>> {
    let properties = variant.get("properties")?.as_object()?;
    let name = properties.get("kind")?.get("const")?.as_str()?;
    let description = variant.get("description").and_then(Json::as_str).unwrap_or_default().replace('\n', " ");
    let fields = properties.iter().filter(|(name, _)| *name != "kind");
    Some(Kind { name, description, fields: fields.map(|(name, schema)| (name.as_str(), schema)).collect() })
}

/// The word that is allowed in place of a list.
fn word(schema: &Json) -> Option<&str> {
    schema.get("word").and_then(Json::as_str)
}

/// The fields of each entry of a table with names that the user chooses.
pub(super) fn entry_fields(schema: &Json) -> Option<&serde_json::Map<String, Json>> {
    schema.get("additionalProperties")?.get("properties")?.as_object()
}

/// Describes in words which values the schema allows.
pub(super) fn expectation(schema: &Json) -> String {
    let choices = choices(schema);
    if !choices.is_empty() {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        return format!("one of {}", names.join(", "));
    }
    match schema.get("type").and_then(Json::as_str) {
        Some("integer") => format!("a whole number{}{}", bounds(schema), units(schema)),
        Some("number") => format!("a number{}", bounds(schema)),
        Some("boolean") => "true or false".into(),
        Some("string") => "a string".into(),
        Some("array") => match word(schema) {
            Some(word) => format!("{}, or \"{word}\"", list_expectation(schema)),
            None => list_expectation(schema),
        },
        _ => match entry_fields(schema) {
            Some(fields) => {
                let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                format!("a table with a table of {} for each name", names.join(", "))
            }
            None => "a value".into(),
        },
    }
}

fn list_expectation(schema: &Json) -> String {
    let kinds: Vec<String> = kinds(schema).iter().map(|kind| format!("\"{}\"", kind.name)).collect();
    if !kinds.is_empty() {
        return format!("a list of tables whose `kind` is one of {}", kinds.join(", "));
    }
    let item = schema.get("items").map(expectation).unwrap_or_default();
    let item = item.strip_prefix("a ").unwrap_or(&item);
    let plural = |one: &str| item.strip_prefix(one).map(|rest| format!("{one}s{rest}"));
    let many = ["whole number", "number", "string", "list"].iter().find_map(|one| plural(one));
    let many = many.unwrap_or_else(|| item.to_owned());
    let count = |key| schema.get(key).and_then(Json::as_u64);
    match (count("minItems"), count("maxItems")) {
        (Some(min), Some(max)) if min == max => format!("a list of {min} {many}"),
        (Some(1), _) => format!("a list, not empty, of {many}"),
        _ => format!("a list of {many}"),
    }
}

/// The range in words: ` of at least 1`, ` above 0 and at most 1`.
fn bounds(schema: &Json) -> String {
    let bound = |key: &str, words: &str| schema.get(key).and_then(Json::as_f64).map(|at| format!("{words} {at}"));
    let parts: Vec<String> = [
        bound("minimum", "of at least"),
        bound("exclusiveMinimum", "above"),
        bound("maximum", "at most"),
        bound("exclusiveMaximum", "below"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() { String::new() } else { format!(" {}", parts.join(" and ")) }
}

/// The units that a string value may use: `, or as text "N steps"`.
fn units(schema: &Json) -> String {
    let units = schema.get("units").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let named: Vec<String> = units.iter().filter_map(Json::as_str).map(|unit| format!("\"N {unit}\"")).collect();
    if named.is_empty() { String::new() } else { format!(", or as text {}", named.join(", ")) }
}

/// Whether a value matches its schema: type, range, length and allowed words.
pub(super) fn fits(value: &toml::Value, schema: &Json) -> bool {
    let choices = choices(schema);
    if !choices.is_empty() {
        return value.as_str().is_some_and(|word| choices.iter().any(|(name, _)| name == word));
    }
    match (schema.get("type").and_then(Json::as_str), value) {
        (Some("integer"), toml::Value::Integer(number)) => in_range(*number as f64, schema),
        (Some("integer"), toml::Value::String(text)) => {
            schema.get("units").is_some() && text.parse::<Interval>().is_ok()
        }
        (Some("number"), toml::Value::Integer(number)) => in_range(*number as f64, schema),
        (Some("number"), toml::Value::Float(number)) => number.is_finite() && in_range(*number, schema),
        (Some("boolean"), toml::Value::Boolean(_)) | (Some("string"), toml::Value::String(_)) => true,
        (Some("array"), toml::Value::String(text)) => word(schema) == Some(text),
        (Some("array"), toml::Value::Array(items)) => {
            let limit = |key, otherwise| schema.get(key).and_then(Json::as_u64).unwrap_or(otherwise);
            (limit("minItems", 0)..=limit("maxItems", u64::MAX)).contains(&(items.len() as u64))
                && match kinds(schema).as_slice() {
                    [] => schema.get("items").is_none_or(|of| items.iter().all(|item| fits(item, of))),
                    kinds => misfits(items, kinds).is_empty(),
                }
        }
        _ => false,
    }
}

/// A value inside a list of tables that does not fit.
pub(super) struct Misfit<'s> {
    /// Its place in the list: `[2].size`.
    pub path: String,
    pub value: toml::Value,
    pub expected: Expected<'s>,
}

/// What was expected in place of a value.
pub(super) enum Expected<'s> {
    /// A value of this schema.
    Schema(&'s Json),
    /// One of the `words`, described as `what`.
    Words { what: String, words: Vec<&'s str>, found: String },
}

/// What does not fit in a list of tables of these `kinds`.
pub(super) fn misfits<'s>(items: &[toml::Value], kinds: &[Kind<'s>]) -> Vec<Misfit<'s>> {
    let mut misfits = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let table = item.as_table();
        let name = table.and_then(|table| table.get("kind"));
        let Some(kind) = kinds.iter().find(|kind| name.and_then(toml::Value::as_str) == Some(kind.name)) else {
            let words: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
            misfits.push(Misfit {
                path: if name.is_some() { format!("[{index}].kind") } else { format!("[{index}]") },
                value: name.unwrap_or(item).clone(),
                expected: Expected::Words {
                    what: if name.is_some() { "one of" } else { "a table whose `kind` is one of" }.to_owned(),
                    words,
                    found: name.and_then(toml::Value::as_str).unwrap_or_default().to_owned(),
                },
            });
            continue;
        };
        for (name, value) in table.into_iter().flatten().filter(|(name, _)| *name != "kind") {
            let expected = match kind.fields.iter().find(|(field, _)| field == name) {
                Some((_, schema)) if fits(value, schema) => continue,
                Some((_, schema)) => Expected::Schema(schema),
                None => Expected::Words {
                    what: format!("a field of the kind \"{}\", one of", kind.name),
                    words: kind.fields.iter().map(|(name, _)| *name).collect(),
                    found: name.clone(),
                },
            };
            misfits.push(Misfit { path: format!("[{index}].{name}"), value: value.clone(), expected });
        }
    }
    misfits
}

fn in_range(number: f64, schema: &Json) -> bool {
    let holds = |key: &str, test: fn(f64, f64) -> bool| {
        schema.get(key).and_then(Json::as_f64).is_none_or(|bound| test(number, bound))
    };
    holds("minimum", |a, b| a >= b)
        && holds("exclusiveMinimum", |a, b| a > b)
        && holds("maximum", |a, b| a <= b)
        && holds("exclusiveMaximum", |a, b| a < b)
}

/// A value as errors show it, truncated if long.
pub(super) fn shown(value: &toml::Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { format!("{}...", text.chars().take(80).collect::<String>()) }
}

/// The known path that is most similar to an unknown one.
///
/// Looks first for a similar name in the same section, then for the same name in other sections, and for a path that is
/// similar as a whole only if there is no such section.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let siblings = all().keys().filter(|path| parent(path) == section);
    let letters = |name: &str| name.replace('_', "");
    let by_spelling = |path: &&String| match letters(last(path)) == letters(name) {
        true => 1.0,
        false => strsim::jaro_winkler(last(path), name),
    };
    let sibling = siblings.max_by(|a, b| by_spelling(a).total_cmp(&by_spelling(b)));
    if let Some(path) = sibling.filter(|path| by_spelling(path) >= 0.85) {
        return Some(path);
    }
    let elsewhere = all().keys().find(|path| last(path) == name);
    elsewhere
        .or(sibling.filter(|path| by_spelling(path) >= 0.7))
        .or_else(|| if all().contains_key(section) { None } else { most_similar(all().keys(), unknown, 0.85) })
        .map(String::as_str)
}

/// The one of `words` that is most similar to `word`, if it is at least this similar.
pub(super) fn most_similar<T: AsRef<str>>(words: impl IntoIterator<Item = T>, word: &str, least: f64) -> Option<T> {
    let likeness = |other: &T| strsim::jaro_winkler(other.as_ref(), word);
    words.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|best| likeness(best) >= least)
}

/// The names of the direct fields of a section.
pub(super) fn names_in(section: &str) -> Vec<&'static str> {
    all().keys().filter(|path| parent(path) == section).map(|path| last(path)).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

fn last(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(path: &str) -> &'static Json {
        all()[path].schema.as_ref().unwrap()
    }

    #[test]
    fn every_field_is_documented() {
        for (path, field) in all() {
            assert!(field.description.ends_with('.'), "{path} has no sentence: {:?}", field.description);
        }
    }

    #[test]
    fn expectations_are_words() {
        assert_eq!(expectation(schema("optimizer.kind")), "one of \"adamw\", \"sgd\"");
        assert_eq!(expectation(schema("model.backbone.depths")), "a list of 4 whole numbers of at least 1");
        assert_eq!(expectation(schema("data.samples_per_gpu")), "a whole number of at least 1");
        assert_eq!(expectation(schema("optimizer.betas")), "a list of 2 numbers of at least 0 and below 1");
        assert_eq!(
            expectation(schema("data.pipeline.scales")),
            "a list, not empty, of lists of 2 whole numbers of at least 1"
        );
    }

    #[test]
    fn the_nearest_name_is_found_by_spelling_and_in_other_sections() {
        assert_eq!(nearest("optimizer.l_r"), Some("optimizer.lr"));
        assert_eq!(nearest("lr"), Some("optimizer.lr"));
        assert_eq!(nearest("optimiser"), Some("optimizer"));
        assert_eq!(nearest("train.samples_per_gpu"), Some("data.samples_per_gpu"));
        assert_eq!(nearest("zzz"), None);
        assert_eq!(nearest("model.backbone.x"), None, "its own section is no answer");
        assert_eq!(nearest("model.backbon.depths"), Some("model.backbone.depths"));
    }

    #[test]
    fn values_are_checked_against_type_range_length_and_words() {
        let float = |x| toml::Value::Float(x);
        assert!(fits(&toml::Value::Integer(1), schema("optimizer.lr")), "a whole number is a number");
        assert!(!fits(&float(f64::NAN), schema("optimizer.lr")));
        assert!(!fits(&float(-0.1), schema("optimizer.lr")));
        assert!(!fits(&float(1.0), schema("data.samples_per_gpu")));
        assert!(!fits(&toml::Value::Array(vec![float(0.9), float(1.0)]), schema("optimizer.betas")));
        assert!(!fits(&toml::Value::String("adam".into()), schema("optimizer.kind")));
    }
}
