//! Evaluates a Python config without running it: literals, names, `dict(...)`, arithmetic and what is like them. Everything
//! else becomes [`Value::Unknown`], and so does what it may change.

use std::path::Path;
use std::rc::Rc;

use indexmap::IndexMap;
use tree_sitter::{Node, Parser};

use fnet_common::{Error, Result};

use crate::value::{DEEPEST, Dict, Item, SourceLocation, Value};

/// Items of lists and dicts, and bytes of strings, that may be copied: a few lines could make endless ones.
const MOST_COPIED: usize = 1_000_000;
/// Dicts and lists that may be put into others after these were made. Each may hold [`DEEPEST`] more, and all are freed
/// one inside the other.
const MOST_INSERTED: usize = 50;

/// Functions of Python that only compute, and those that loops use.
const FUNCTIONS: [&str; 9] = ["dict", "len", "int", "float", "str", "list", "tuple", "range", "print"];

/// The variables that a file sets, in order, and the statements that were left out.
#[derive(Debug, Default)]
pub struct Evaluated {
    pub variables: Dict,
    /// Places and texts of statements that are not evaluated.
    pub left_out: Vec<String>,
    /// What the bases contain after it; a file may change `_base_.name`.
    pub base: Dict,
}

/// The names of the config files in `_base_`, each with its place.
/// Errors: a usage error if the text is not Python, or `_base_` is not a list of strings.
pub fn bases(text: &str, file: &Path) -> Result<Vec<(String, SourceLocation)>> {
    let evaluated = evaluate(text, file, None)?;
    let Some(item) = evaluated.variables.get(BASE) else { return Ok(Vec::new()) };
    let items = match &item.value {
        Value::List(items) => items.borrow().clone(),
        _ => vec![item.clone()],
    };
    let name = |item: Item| match &item.value {
        Value::Text(name) => Ok((name.to_string(), item.place)),
        other => Err(Error::usage(format!(
            "{}: {BASE} contains {}; expected the names of config files, as strings",
            item.place,
            other.kind()
        ))),
    };
    items.into_iter().map(name).collect()
}

/// The name of the list of inherited files, and of what they contain.
pub const BASE: &str = "_base_";

/// Evaluates a file whose bases contain `base`.
/// Errors: a usage error with its place if the text is not Python, or is a config whose values are imported
/// (`read_base`).
pub fn evaluate(text: &str, file: &Path, base: Option<&Dict>) -> Result<Evaluated> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new();
    parser
        .set_language(&tree_sitter_python::LANGUAGE.into())
        .map_err(|error| Error::bug(format!("the Python grammar does not fit the parser: {error}")))?;
    let tree = parser.parse(text, None).ok_or_else(|| Error::bug("the Python parser gave no tree"))?;
    let mut evaluator = Evaluator {
        text,
        path: file,
        file: file.display().to_string().into(),
        out: Evaluated::default(),
        inserted: 0,
        copied: 0,
        base: base.map(|base| Value::dict(base.clone())),
        lost: None,
    };
    if let Some(node) = first_error(tree.root_node()) {
        let what = match node.is_missing() {
            true => format!("`{}` is missing", node.kind()),
            false => format!("`{}`", shortened(evaluator.source(node))),
        };
        return Err(Error::usage(format!(
            "{}: this is not valid Python ({what}); a config of MMDetection is expected: correct the line",
            evaluator.place(node)
        )));
    }
    evaluator.block(tree.root_node())?;
    match (&evaluator.base, evaluator.lost) {
        (Some(Value::Dict(base)), _) => evaluator.out.base = base.borrow().clone(),
        (Some(_), Some(lost)) if base.is_some() => {
            return Err(Error::usage(format!(
                "{lost}, may change every value of the bases, and it is not run. Where MMDetection is installed, write one file \
                 with all values and convert that:\n  {}",
                dump_line(file)
            )));
        }
        _ => {}
    }
    Ok(evaluator.out)
}

/// The first place where the text is not Python.
fn first_error(root: Node<'_>) -> Option<Node<'_>> {
    if !root.has_error() {
        return None;
    }
    let mut cursor = root.walk();
    loop {
        let node = cursor.node();
        if node.is_error() || node.is_missing() {
            return Some(node);
        }
        if node.has_error() && cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return Some(root);
            }
        }
    }
}

/// Text on one line, shortened.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let words = fnet_common::text::printable(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &words[..end]),
        None => words,
    }
}

struct Evaluator<'a> {
    text: &'a str,
    path: &'a Path,
    file: Rc<str>,
    out: Evaluated,
    inserted: usize,
    copied: usize,
    base: Option<Value>,
    /// The statement that may have changed the bases.
    lost: Option<String>,
}

/// The named children of a node without comments.
fn children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.named_children(&mut cursor).filter(|child| child.kind() != "comment").collect()
}

fn field<'t>(node: Node<'t>, name: &str) -> Option<Node<'t>> {
    node.child_by_field_name(name)
}

impl<'a> Evaluator<'a> {
    fn source(&self, node: Node<'_>) -> &'a str {
        self.text.get(node.byte_range()).unwrap_or_default()
    }

    fn place(&self, node: Node<'_>) -> SourceLocation {
        let start = node.start_byte();
        let line_start = self.text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        let column = self.text.get(line_start..start).map_or(0, |before| before.chars().count()) + 1;
        SourceLocation { file: self.file.clone(), line: node.start_position().row + 1, column }
    }

    fn item(&self, node: Node<'_>, value: Value) -> Item {
        Item { value, place: self.place(node) }
    }

    fn unknown(&self, node: Node<'_>, what: &str) -> Item {
        self.item(node, Value::unknown(format!("`{}`, {what}", shortened(self.source(node)))))
    }

    /// Whether this much more may be copied.
    fn may_copy(&mut self, length: usize) -> bool {
        self.copied = self.copied.saturating_add(length);
        self.copied <= MOST_COPIED
    }

    /// A dict or list, unless it is nested too deeply.
    fn nested(&self, node: Node<'_>, value: Value) -> Item {
        if value.depth() > DEEPEST { self.unknown(node, "nested too deeply") } else { self.item(node, value) }
    }

    /// The statements of the file.
    fn block(&mut self, module: Node<'_>) -> Result<()> {
        let statements = children(module);
        statements.into_iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, node: Node<'_>) -> Result<()> {
        match node.kind() {
            "expression_statement" => {
                for child in children(node) {
                    match child.kind() {
                        "assignment" => drop(self.assignment(child)),
                        "augmented_assignment" => self.augmented(child),
                        // A docstring, a name: no effect.
                        "string" | "concatenated_string" | "identifier" | "ellipsis" => {}
                        _ => self.leave_out(child),
                    }
                }
            }
            "pass_statement" | "future_import_statement" => {}
            "delete_statement" if self.delete(node) => {}
            "with_statement" if self.source(node).contains("read_base") => {
                return Err(Error::usage(format!(
                    "{}: this config imports its bases (`with read_base()`), and imports are not followed; expected `_base_ = \
                     [...]` or a config without bases. Where MMDetection is installed, write one file with all values and \
                     convert that:\n  {}",
                    self.place(node),
                    dump_line(self.path)
                )));
            }
            "import_statement" | "import_from_statement" => {
                for name in names(node) {
                    let name = self.source(name).to_owned();
                    let item = self.unknown(node, "an import");
                    self.out.variables.insert(name, item);
                }
            }
            _ => self.leave_out(node),
        }
        Ok(())
    }

    /// `del a, b['c']`; `false` if something of it is not there.
    fn delete(&mut self, node: Node<'_>) -> bool {
        let targets = children(node);
        let targets = targets.iter().flat_map(|target| match target.kind() {
            "expression_list" | "tuple" | "parenthesized_expression" => children(*target),
            _ => vec![*target],
        });
        let mut all = true;
        for target in targets.collect::<Vec<_>>() {
            all &= match (target.kind(), self.holder(target, DEEPEST)) {
                ("identifier", _) => self.out.variables.shift_remove(self.source(target)).is_some(),
                (_, (Some(Item { value: Value::Dict(dict), .. }), Some(Value::Text(key)))) => {
                    dict.borrow_mut().shift_remove(&*key).is_some()
                }
                _ => false,
            };
        }
        all
    }

    /// Leaves out a statement. Every variable that it names may have another value after it.
    fn leave_out(&mut self, node: Node<'_>) {
        let what = match node.kind() {
            "call" => "a function call",
            "if_statement" => "a condition",
            "for_statement" | "while_statement" => "a loop",
            "function_definition" | "class_definition" | "decorated_definition" => "a definition",
            "delete_statement" => "a deletion",
            _ => "a statement that sets no variable",
        };
        // Printing changes nothing.
        if node.kind() == "call" && field(node, "function").is_some_and(|name| self.source(name) == "print") {
            return;
        }
        let place = self.place(node);
        self.out.left_out.push(format!("{place}: `{}`, {what}", shortened(self.source(node))));
        let defined = field(node, "name").map(|name| self.source(name));
        for name in names(node) {
            let name = self.source(name);
            if name == BASE {
                self.base = Some(self.unknown(node, what).value);
                self.lost = Some(format!("{place}: `{}`, {what}", shortened(self.source(node))));
            } else if self.out.variables.contains_key(name)
                || defined == Some(name)
                || (defined.is_none() && node.kind() != "call" && !FUNCTIONS.contains(&name))
            {
                let item = self.unknown(node, what);
                if let Some(before) = self.out.variables.insert(name.to_owned(), item.clone()) {
                    spoil(&before.value, &item);
                }
            }
        }
    }

    /// `a = b = value`, `a, b = values`, `a['b'] = value`, `_base_.a.b = value`.
    fn assignment(&mut self, node: Node<'_>) -> Option<Item> {
        let item = match field(node, "right") {
            Some(right) if right.kind() == "assignment" => self.assignment(right)?,
            Some(right) => self.expression(right, DEEPEST),
            // `name: type`
            None => return None,
        };
        if let Some(left) = field(node, "left") {
            self.assign(left, item.clone());
        }
        Some(item)
    }

    fn assign(&mut self, target: Node<'_>, item: Item) {
        match target.kind() {
            "identifier" => drop(self.out.variables.insert(self.source(target).to_owned(), item)),
            "pattern_list" | "tuple_pattern" | "list_pattern" => {
                let (targets, items) = (children(target), item.value.items());
                for (index, target) in targets.iter().enumerate() {
                    let part = if items.len() == targets.len() { items.get(index).cloned() } else { None };
                    let part = part.unwrap_or_else(|| self.unknown(target.parent().unwrap_or(*target), "an unpacking"));
                    self.assign(*target, part);
                }
            }
            _ => {
                if !self.put(target, item) {
                    self.leave_out(target.parent().unwrap_or(target));
                }
            }
        }
    }

    /// Changes a value inside a dict or list; `false` if there is none at the target.
    fn put(&mut self, target: Node<'_>, item: Item) -> bool {
        let (Some(holder), Some(key)) = self.holder(target, DEEPEST) else { return false };
        if matches!(item.value, Value::List(_) | Value::Dict(_)) {
            self.inserted += 1;
        }
        if self.inserted > MOST_INSERTED || item.value.depth() >= DEEPEST {
            return false;
        }
        match (&holder.value, &key) {
            (Value::Dict(dict), Value::Text(key)) => drop(dict.borrow_mut().insert(key.to_string(), item)),
            (Value::List(items), Value::Int(index)) => {
                let mut items = items.borrow_mut();
                let Some(slot) = position(*index, items.len()).and_then(|index| items.get_mut(index)) else {
                    return false;
                };
                *slot = item;
            }
            _ => return false,
        }
        true
    }

    fn augmented(&mut self, node: Node<'_>) {
        let (Some(left), Some(right), Some(operator)) =
            (field(node, "left"), field(node, "right"), field(node, "operator"))
        else {
            return self.leave_out(node);
        };
        let (before, more) = (self.expression(left, DEEPEST), self.expression(right, DEEPEST));
        let operator = self.source(operator).trim_end_matches('=');
        match (&before.value, &more.value, operator) {
            // A list grows in place, wherever it is used.
            (Value::List(items), Value::List(_), "+") if more.value.depth() < DEEPEST => {
                let more = more.value.items();
                self.inserted += 1;
                if self.inserted > MOST_INSERTED || !self.may_copy(more.len()) {
                    return self.leave_out(node);
                }
                items.borrow_mut().extend(more);
            }
            _ => {
                let item = match self.arithmetic(operator, &before.value, &more.value) {
                    Some(value) => self.nested(node, value),
                    None => self.unknown(node, "an operation without a known result"),
                };
                self.assign(left, item);
            }
        }
    }

    /// The value of an expression, nested at most `left` deep.
    fn expression(&mut self, node: Node<'_>, left: usize) -> Item {
        let Some(left) = left.checked_sub(1) else { return self.unknown(node, "nested too deeply") };
        let value = match node.kind() {
            "none" => Value::None,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "integer" => match integer(self.source(node)) {
                Some(number) => Value::Int(number),
                None => return self.unknown(node, "a number beyond 64 bits"),
            },
            "float" => match self.source(node).replace('_', "").parse() {
                Ok(number) => Value::Float(number),
                Err(_) => return self.unknown(node, "a complex number"),
            },
            "string" => return self.string(node, left),
            "concatenated_string" => {
                let parts: Vec<Item> = children(node).into_iter().map(|part| self.string(part, left)).collect();
                if let Some(unknown) = parts.iter().find(|part| part.value.as_text().is_none()) {
                    return unknown.clone();
                }
                Value::text(parts.iter().filter_map(|part| part.value.as_text()).collect::<String>())
            }
            "identifier" => return self.name(node),
            "parenthesized_expression" => match children(node).as_slice() {
                [inner] => return self.expression(*inner, left),
                _ => return self.unknown(node, "an expression"),
            },
            "list" | "tuple" | "expression_list" => {
                let mut items = Vec::new();
                for child in children(node) {
                    if child.kind() != "list_splat" {
                        items.push(self.expression(child, left));
                        continue;
                    }
                    match children(child).first().map(|inner| self.expression(*inner, left).value) {
                        Some(Value::List(list)) if self.may_copy(list.borrow().len()) => {
                            items.extend(list.borrow().iter().cloned());
                        }
                        _ => return self.unknown(child, "an unpacking of an unknown list"),
                    }
                }
                return self.nested(node, Value::list(items));
            }
            "dictionary" => {
                return match self.dictionary(node, left) {
                    Ok(dict) => self.nested(node, Value::dict(dict)),
                    Err(unknown) => unknown,
                };
            }
            // `{{_base_.name}}`
            "set" => match children(node).as_slice() {
                [inner] if inner.kind() == "set" && self.source(*inner).contains(BASE) => {
                    match children(*inner).as_slice() {
                        [reference] => return self.expression(*reference, left),
                        _ => return self.unknown(node, "a set"),
                    }
                }
                _ => return self.unknown(node, "a set"),
            },
            "call" => return self.call(node, left),
            "subscript" | "attribute" => {
                let (Some(holder), Some(key)) = self.holder(node, left) else {
                    return self.unknown(node, "a reference");
                };
                return match (&holder.value, &key) {
                    (Value::Dict(_), Value::Text(key)) => match holder.value.get(key) {
                        Some(item) => item,
                        None => self.unknown(node, "a key that is missing"),
                    },
                    (Value::List(items), Value::Int(index)) => {
                        let items = items.borrow();
                        let item = position(*index, items.len()).and_then(|index| items.get(index)).cloned();
                        item.unwrap_or_else(|| self.unknown(node, "an index out of range"))
                    }
                    (Value::Unknown(_), _) => holder.clone(),
                    _ => self.unknown(node, "a reference"),
                };
            }
            "unary_operator" => {
                let operand = field(node, "argument").map(|inner| self.expression(inner, left).value);
                let operator = field(node, "operator").map(|operator| self.source(operator));
                let negated = match (operator, operand) {
                    (Some("-"), Some(Value::Int(number))) => number.checked_neg().map(Value::Int),
                    (Some("-"), Some(Value::Float(number))) => Some(Value::Float(-number)),
                    (Some("+"), Some(number @ (Value::Int(_) | Value::Float(_)))) => Some(number),
                    _ => None,
                };
                match negated {
                    Some(value) => value,
                    None => return self.unknown(node, "an operation without a known result"),
                }
            }
            "binary_operator" => {
                let (Some(a), Some(b), Some(operator)) =
                    (field(node, "left"), field(node, "right"), field(node, "operator"))
                else {
                    return self.unknown(node, "an expression");
                };
                let (a, b) = (self.expression(a, left), self.expression(b, left));
                match self.arithmetic(self.source(operator), &a.value, &b.value) {
                    Some(value) => return self.nested(node, value),
                    None if matches!(a.value, Value::Unknown(_)) => return a,
                    None if matches!(b.value, Value::Unknown(_)) => return b,
                    None => return self.unknown(node, "an operation without a known result"),
                }
            }
            "list_comprehension" | "dictionary_comprehension" | "set_comprehension" | "generator_expression" => {
                return self.unknown(node, "a comprehension");
            }
            "conditional_expression" | "boolean_operator" | "comparison_operator" | "not_operator" => {
                return self.unknown(node, "a condition");
            }
            "lambda" => return self.unknown(node, "a function"),
            "slice" => return self.unknown(node, "a slice"),
            _ => return self.unknown(node, "an expression that only Python can evaluate"),
        };
        self.item(node, value)
    }

    /// The dict or list, and the key, of `a['b']` or `a.b`.
    fn holder(&mut self, node: Node<'_>, left: usize) -> (Option<Item>, Option<Value>) {
        let of = field(node, if node.kind() == "subscript" { "value" } else { "object" });
        let key = match field(node, "subscript") {
            Some(key) => Some(self.expression(key, left).value),
            None => field(node, "attribute").map(|key| Value::text(self.source(key))),
        };
        (of.map(|of| self.expression(of, left)), key)
    }

    fn name(&self, node: Node<'_>) -> Item {
        match (self.source(node), &self.base) {
            (BASE, Some(base)) => self.item(node, base.clone()),
            (BASE, None) => self.unknown(node, "a reference to a base"),
            // Messages about a value refer to where it was written.
            (name, _) => match self.out.variables.get(name) {
                Some(item) => item.clone(),
                None => self.unknown(node, "a name that this file does not set"),
            },
        }
    }

    /// The keys and values of `{...}`, or the expression that is unknown.
    fn dictionary(&mut self, node: Node<'_>, left: usize) -> Result<Dict, Item> {
        let mut dict = IndexMap::new();
        for child in children(node) {
            match (child.kind(), field(child, "key"), field(child, "value")) {
                ("pair", Some(key), Some(value)) => {
                    let name = match self.expression(key, left).value {
                        Value::Text(name) => name.to_string(),
                        number @ (Value::Int(_) | Value::Bool(_)) => number.to_string(),
                        _ => return Err(self.unknown(key, "a key that is no string")),
                    };
                    let value = self.expression(value, left);
                    dict.insert(name, value);
                }
                _ => self.unpack(child, left, &mut dict)?,
            }
        }
        Ok(dict)
    }

    /// Adds the values of `**other`.
    fn unpack(&mut self, node: Node<'_>, left: usize, dict: &mut Dict) -> Result<(), Item> {
        // `dict(other)` has no stars.
        let inner = if node.kind() == "dictionary_splat" { children(node).first().copied() } else { Some(node) };
        match inner.map(|inner| self.expression(inner, left).value) {
            Some(Value::Dict(other)) if self.may_copy(other.borrow().len()) => {
                dict.extend(other.borrow().iter().map(|(key, item)| (key.clone(), item.clone())));
                Ok(())
            }
            _ => Err(self.unknown(node, "an unpacking of an unknown dict")),
        }
    }

    /// `dict(...)`, and the functions of Python that only compute.
    fn call(&mut self, node: Node<'_>, left: usize) -> Item {
        let (Some(function), Some(arguments)) = (field(node, "function"), field(node, "arguments")) else {
            return self.unknown(node, "a function call");
        };
        let name = self.source(function);
        if arguments.kind() != "argument_list" || self.out.variables.contains_key(name) {
            return self.unknown(node, "a function call");
        }
        if name == "dict" {
            let mut dict = IndexMap::new();
            for child in children(arguments) {
                let added = match (child.kind(), field(child, "name"), field(child, "value")) {
                    ("keyword_argument", Some(name), Some(value)) => {
                        let value = self.expression(value, left);
                        dict.insert(self.source(name).to_owned(), value);
                        Ok(())
                    }
                    _ => self.unpack(child, left, &mut dict),
                };
                if let Err(unknown) = added {
                    return unknown;
                }
            }
            return self.nested(node, Value::dict(dict));
        }
        let given = children(arguments);
        let [argument] = given.as_slice() else { return self.unknown(node, "a function call") };
        let argument = self.expression(*argument, left);
        let value = match (name, &argument.value) {
            ("len", Value::List(items)) => Some(Value::Int(items.borrow().len() as i64)),
            ("len", Value::Text(text)) => Some(Value::Int(text.chars().count() as i64)),
            ("len", Value::Dict(dict)) => Some(Value::Int(dict.borrow().len() as i64)),
            ("list" | "tuple", Value::List(items)) if self.may_copy(items.borrow().len()) => {
                Some(Value::list(argument.value.items()))
            }
            ("str", text @ Value::Text(_)) => Some(text.clone()),
            ("str", number @ Value::Int(_)) => Some(Value::text(number.to_string())),
            ("int", number @ Value::Int(_)) | ("float", number @ Value::Float(_)) => Some(number.clone()),
            ("float", Value::Int(number)) => Some(Value::Float(*number as f64)),
            ("int", Value::Float(number)) if number.abs() < 1e15 => Some(Value::Int(number.trunc() as i64)),
            (_, Value::Unknown(_)) => return argument,
            _ => None,
        };
        match value {
            Some(value) => self.item(node, value),
            None => self.unknown(node, "a function call"),
        }
    }

    /// The result of an operation on numbers, strings or lists, if it has one.
    fn arithmetic(&mut self, operator: &str, a: &Value, b: &Value) -> Option<Value> {
        use Value::{Int, List, Text};
        match (operator, a, b) {
            ("+", Text(a), Text(b)) => self.may_copy(a.len() + b.len()).then(|| Value::text(format!("{a}{b}"))),
            ("+", List(_), List(_)) => {
                let items: Vec<Item> = a.items().into_iter().chain(b.items()).collect();
                self.may_copy(items.len()).then(|| Value::list(items))
            }
            ("*", Text(text), Int(times)) | ("*", Int(times), Text(text)) => {
                let times = usize::try_from(*times).unwrap_or(0);
                self.may_copy(times.checked_mul(text.len())?).then(|| Value::text(text.repeat(times)))
            }
            ("*", List(items), Int(times)) | ("*", Int(times), List(items)) => {
                let (items, times) = (items.borrow(), usize::try_from(*times).unwrap_or(0));
                let length = times.checked_mul(items.len())?;
                self.may_copy(length).then(|| Value::list(items.iter().cycle().take(length).cloned().collect()))
            }
            _ => calculated(operator, a, b),
        }
    }

    fn string(&mut self, node: Node<'_>, left: usize) -> Item {
        if node.kind() != "string" {
            return self.unknown(node, "an expression");
        }
        let mut text = String::new();
        let mut prefix = String::new();
        let mut cursor = node.walk();
        for part in node.children(&mut cursor).collect::<Vec<_>>() {
            match part.kind() {
                "string_start" => prefix = self.source(part).trim_end_matches(['"', '\'']).to_ascii_lowercase(),
                "string_content" if prefix.contains('r') => text.push_str(self.source(part)),
                "string_content" => match unescaped(self.source(part), prefix.contains('f')) {
                    Some(content) => text.push_str(&content),
                    None => return self.unknown(node, "a string with an escape that only Python knows"),
                },
                "interpolation" => {
                    let inner = children(part);
                    let [inner] = inner.as_slice() else { return self.unknown(node, "a formatted string") };
                    match self.expression(*inner, left).value {
                        Value::Text(inner) if self.may_copy(inner.len()) => text.push_str(&inner),
                        Value::Int(number) => text.push_str(&number.to_string()),
                        _ => return self.unknown(node, "a formatted string of an unknown value"),
                    }
                }
                _ => {}
            }
        }
        if prefix.contains('b') {
            return self.unknown(node, "bytes");
        }
        if text.contains("${") || text.contains("{{$") || text.contains("{{ $") {
            return self.unknown(node, "a string that a tool fills in");
        }
        self.item(node, Value::text(self.filled(text)))
    }

    /// A string with the name of the file in place of `{{ fileBasename }}` and the like.
    fn filled(&self, text: String) -> String {
        if !text.contains("{{") {
            return text;
        }
        let shown = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let folder = self.path.parent().map(|parent| parent.display().to_string()).unwrap_or_default();
        let extension = shown(self.path.extension());
        let names = [
            ("fileDirname", folder),
            ("fileBasename", shown(self.path.file_name())),
            ("fileBasenameNoExtension", shown(self.path.file_stem())),
            ("fileExtname", if extension.is_empty() { extension } else { format!(".{extension}") }),
        ];
        names.iter().fold(text, |text, (name, value)| {
            text.replace(&format!("{{{{{name}}}}}"), value).replace(&format!("{{{{ {name} }}}}"), value)
        })
    }
}

/// Makes the content of a dict or list unknown, wherever it is used.
fn spoil(value: &Value, unknown: &Item) {
    match value {
        Value::List(items) => {
            let before = items.replace(vec![unknown.clone()]);
            before.iter().for_each(|item| spoil(&item.value, unknown));
        }
        Value::Dict(dict) => {
            let spoiled = dict.borrow().keys().map(|key| (key.clone(), unknown.clone())).collect();
            let before = dict.replace(spoiled);
            // A dict that contains itself is met again with nothing left to spoil.
            before.values().for_each(|item| spoil(&item.value, unknown));
        }
        _ => {}
    }
}

/// The line that writes a config as one file without bases, where MMDetection is installed.
pub fn dump_line(path: &Path) -> String {
    format!(
        "python -c \"from mmengine import Config; Config.fromfile('{}').dump('flat.py')\"  # MMDetection 2: from mmcv import \
         Config",
        path.display()
    )
}

/// Every name in a statement.
fn names(node: Node<'_>) -> Vec<Node<'_>> {
    let mut found = Vec::new();
    let mut cursor = node.walk();
    loop {
        let here = cursor.node();
        // `a.b` and `f(a=1)`: `b` and the first `a` are not variables.
        let is_variable = match cursor.field_name() {
            Some("attribute") => false,
            Some("name") => here.parent().is_none_or(|parent| parent.kind() != "keyword_argument"),
            _ => true,
        };
        if here.kind() == "identifier" && is_variable {
            found.push(here);
        }
        if cursor.goto_first_child() {
            continue;
        }
        loop {
            if cursor.node() == node {
                return found;
            }
            if cursor.goto_next_sibling() {
                break;
            }
            if !cursor.goto_parent() {
                return found;
            }
        }
    }
}

/// The index of Python's `index` in a list of `length` items.
fn position(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(i64::try_from(length).ok()?)? } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}

fn integer(text: &str) -> Option<i64> {
    let text = text.replace('_', "").to_ascii_lowercase();
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return i64::from_str_radix(digits, radix).ok();
        }
    }
    text.parse().ok()
}

/// The text of a string with its escapes resolved; `None` for `\N{...}` and what is no character.
fn unescaped(text: &str, formatted: bool) -> Option<String> {
    let text = if formatted { text.replace("{{", "{").replace("}}", "}") } else { text.to_owned() };
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut letters = rest[at + 1..].chars();
        let letter = letters.next()?;
        rest = letters.as_str();
        let digits = match letter {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        match letter {
            '\n' => {}
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            '\\' | '\'' | '"' => out.push(letter),
            'x' | 'u' | 'U' => {
                out.push(u32::from_str_radix(rest.get(..digits)?, 16).ok().and_then(char::from_u32)?);
                rest = rest.get(digits..)?;
            }
            'N' | '0'..='7' | 'a' | 'b' | 'f' | 'v' => return None,
            // Python leaves other letters as they are.
            other => out.extend(['\\', other]),
        }
    }
    out.push_str(rest);
    Some(out)
}

/// The result of an operation on numbers; `None` where Python would raise an error or a whole number does not fit.
fn calculated(operator: &str, a: &Value, b: &Value) -> Option<Value> {
    if let (Value::Int(a), Value::Int(b)) = (a, b) {
        return match operator {
            "+" => a.checked_add(*b).map(Value::Int),
            "-" => a.checked_sub(*b).map(Value::Int),
            "*" => a.checked_mul(*b).map(Value::Int),
            "**" => a.checked_pow(u32::try_from(*b).ok()?).map(Value::Int),
            // Rounded down, not toward zero.
            "//" => {
                let remainder = a.checked_rem_euclid(*b)?;
                Some(Value::Int(a.checked_div_euclid(*b)? - i64::from(*b < 0 && remainder != 0)))
            }
            "%" if *b > 0 => a.checked_rem_euclid(*b).map(Value::Int),
            "/" if *b != 0 => Some(Value::Float(*a as f64 / *b as f64)),
            _ => None,
        };
    }
    let (a, b) = (a.as_number()?, b.as_number()?);
    let result = match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => (a / b).floor(),
        "**" => a.powf(b),
        _ => return None,
    };
    result.is_finite().then_some(Value::Float(result))
}

#[cfg(test)]
mod tests;
