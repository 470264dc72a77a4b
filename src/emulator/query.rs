//! The part of the hub's query language that tools use on twins.
//!
//! `SELECT [TOP n] * | path [AS name], … | COUNT() AS name FROM devices | devices.modules [WHERE …]`, with
//! `= != <> < <= > >= IN NIN AND OR NOT`, `IS_DEFINED`, `IS_BOOL` and its like, `STARTSWITH`, `ENDSWITH`, `CONTAINS` and parentheses. What it
//! does not know (grouping, other sums, jobs) it refuses, and says so.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::id::fnv1a;

/// The hub's own limit.
const TEXT_MAX: usize = 8192;
const DEPTH_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Query {
    modules: bool,
    top: Option<usize>,
    select: Select,
    filter: Option<Filter>,
}

#[derive(Debug)]
enum Select {
    All,
    Count(String),
    Paths(Vec<(Vec<String>, String)>),
}

#[derive(Debug)]
enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Not(Box<Filter>),
    Compare(Vec<String>, Operator, Value),
    In(Vec<String>, Vec<Value>),
    Function(Function, Vec<String>, String),
    Defined(Vec<String>),
    Is(Is, Vec<String>),
}

type Is = fn(&Value) -> bool;

/// What can be asked about a value's type.
const TYPES: [(&str, Is); 7] = [
    ("IS_ARRAY", Value::is_array),
    ("IS_BOOL", Value::is_boolean),
    ("IS_NULL", Value::is_null),
    ("IS_NUMBER", Value::is_number),
    ("IS_OBJECT", Value::is_object),
    ("IS_STRING", Value::is_string),
    ("IS_PRIMITIVE", |value| !value.is_object() && !value.is_array()),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy)]
enum Function {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A keyword or a path.
    Word(String),
    Literal(Value),
    Symbol(&'static str),
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Query, String> {
        if text.len() > TEXT_MAX {
            return Err(format!("The query is longer than {TEXT_MAX} characters."));
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        let query = parser.query()?;
        match parser.peek() {
            None => Ok(query),
            Some(token) => {
                Err(format!("The query goes on with {token:?}, which the emulator does not understand."))
            }
        }
    }

    /// Reads the target condition of a deployment: the part after `WHERE`, or `FROM devices.modules WHERE …`; `*` is all.
    pub(super) fn condition(text: &str) -> Result<Query, String> {
        let text = text.trim();
        let query = match text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("from ")) {
            true => Query::parse(&format!("SELECT * {text}"))?,
            false if text == "*" => Query::parse("SELECT * FROM devices")?,
            false => Query::parse(&format!("SELECT * FROM devices WHERE {text}"))?,
        };
        if query.filter.as_ref().is_some_and(Filter::has_in) {
            return Err("IN and NIN cannot stand in a target condition.".into());
        }
        Ok(query)
    }

    /// Whether this twin would be found.
    pub(super) fn finds(&self, twin: &Value) -> bool {
        twin.get("moduleId").is_some() == self.modules
            && self.filter.as_ref().is_none_or(|filter| filter.holds(twin))
    }

    pub(super) fn item_type(&self) -> &'static str {
        if matches!(self.select, Select::All) { "twin" } else { "raw" }
    }

    pub(super) fn run(&self, twins: &[Value]) -> Vec<Value> {
        let found = twins.iter().filter(|twin| self.finds(twin));
        let most = self.top.unwrap_or(usize::MAX);
        match &self.select {
            Select::All => found.take(most).cloned().collect(),
            Select::Count(name) => {
                let mut row = Map::new();
                row.insert(name.clone(), found.count().into());
                vec![Value::Object(row)]
            }
            Select::Paths(paths) => found
                .take(most)
                .map(|twin| {
                    let columns = paths
                        .iter()
                        .filter_map(|(path, name)| Some((name.clone(), look_up(twin, path)?.clone())));
                    Value::Object(columns.collect())
                })
                .collect(),
        }
    }
}

/// An opaque token for the page that starts at `offset`.
pub(super) fn token(offset: usize, query: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{offset}:{:016x}", fnv1a(query.as_bytes())))
}

/// The offset in a token, if it belongs to this query.
pub(super) fn offset(token: &str, query: &str) -> Option<usize> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (offset, hash) = text.split_once(':')?;
    (hash == format!("{:016x}", fnv1a(query.as_bytes()))).then(|| offset.parse().ok())?
}

fn look_up<'a>(twin: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(twin, |value, key| value.get(key))
}

impl Filter {
    fn has_in(&self) -> bool {
        match self {
            Filter::And(all) | Filter::Or(all) => all.iter().any(Filter::has_in),
            Filter::Not(inner) => inner.has_in(),
            Filter::In(..) => true,
            _ => false,
        }
    }

    fn holds(&self, twin: &Value) -> bool {
        match self {
            Filter::And(all) => all.iter().all(|filter| filter.holds(twin)),
            Filter::Or(any) => any.iter().any(|filter| filter.holds(twin)),
            Filter::Not(inner) => !inner.holds(twin),
            Filter::Defined(path) => look_up(twin, path).is_some(),
            Filter::Is(is, path) => look_up(twin, path).is_some_and(is),
            Filter::In(path, values) => {
                look_up(twin, path).is_some_and(|found| values.iter().any(|v| same(found, v)))
            }
            Filter::Function(function, path, text) => {
                look_up(twin, path).and_then(Value::as_str).is_some_and(|found| match function {
                    Function::StartsWith => found.starts_with(text.as_str()),
                    Function::EndsWith => found.ends_with(text.as_str()),
                    Function::Contains => found.contains(text.as_str()),
                })
            }
            Filter::Compare(path, operator, value) => {
                look_up(twin, path).is_some_and(|found| match operator {
                    Operator::Equal => same(found, value),
                    Operator::Unequal => !same(found, value),
                    _ => {
                        let order = match (found, value) {
                            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                            (a, b) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
                        };
                        order.is_some_and(|order| match operator {
                            Operator::Less => order.is_lt(),
                            Operator::LessOrEqual => order.is_le(),
                            Operator::Greater => order.is_gt(),
                            _ => order.is_ge(),
                        })
                    }
                })
            }
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b
        || a.as_f64()
            .zip(b.as_f64())
            .is_some_and(|(a, b)| a.partial_cmp(&b).is_some_and(|order| order.is_eq()))
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let symbols = ["!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", "[", "]", ",", "*"];
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphabetic() || first == '_' || first == '$' {
            let end =
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_$.-".contains(c))).unwrap_or(rest.len());
            let word = &rest[..end];
            found.push(match word.to_ascii_lowercase().as_str() {
                "true" => Token::Literal(true.into()),
                "false" => Token::Literal(false.into()),
                "null" => Token::Literal(Value::Null),
                _ => Token::Word(word.to_owned()),
            });
            end
        } else if first.is_ascii_digit() || first == '-' {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || "-+.eE".contains(c))).unwrap_or(rest.len());
            let number = serde_json::from_str(&rest[..end]);
            found.push(Token::Literal(number.map_err(|_| format!("{:?} is not a number.", &rest[..end]))?));
            end
        } else if first == '\'' {
            let (text, length) = quoted(rest)?;
            found.push(Token::Literal(text.into()));
            length
        } else if let Some(symbol) = symbols.iter().find(|symbol| rest.starts_with(**symbol)) {
            found.push(Token::Symbol(symbol));
            symbol.len()
        } else {
            return Err(format!("The query holds {first:?}, which the emulator does not understand."));
        };
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

/// A text in single quotes, in which two stand for one; with the length it takes in the query.
fn quoted(rest: &str) -> Result<(String, usize), String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if c != '\'' {
            text.push(c);
        } else if characters.next_if(|(_, next)| *next == '\'').is_some() {
            text.push('\'');
        } else {
            return Ok((text, at + 1));
        }
    }
    Err("A text in the query has no end.".into())
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword));
        self.at += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(found)) if *found == symbol);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        if self.symbol(symbol) { Ok(()) } else { Err(format!("The query lacks {symbol:?}.")) }
    }

    fn path(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word.split('.').map(str::to_owned).collect()),
            other => Err(format!("The query has {other:?} where a property's name belongs.")),
        }
    }

    /// A path in parentheses.
    fn argument(&mut self) -> Result<Vec<String>, String> {
        self.expect("(")?;
        let path = self.path()?;
        self.expect(")")?;
        Ok(path)
    }

    fn literal(&mut self) -> Result<Value, String> {
        match self.next() {
            Some(Token::Literal(value)) => Ok(value),
            other => Err(format!("The query has {other:?} where a value belongs.")),
        }
    }

    fn query(&mut self) -> Result<Query, String> {
        if !self.keyword("SELECT") {
            return Err("A query begins with SELECT.".into());
        }
        let top = if self.keyword("TOP") {
            let top = self.literal()?.as_u64().and_then(|top| usize::try_from(top).ok());
            Some(top.ok_or("TOP needs a number.")?)
        } else {
            None
        };
        let select = self.select()?;
        if !self.keyword("FROM") {
            return Err("The query lacks FROM.".into());
        }
        let modules = match self.path()?.join(".").as_str() {
            "devices" => false,
            "devices.modules" => true,
            other => return Err(format!("The emulator has devices and devices.modules, not {other}.")),
        };
        let filter = if self.keyword("WHERE") { Some(self.or(0)?) } else { None };
        Ok(Query { modules, top, select, filter })
    }

    fn select(&mut self) -> Result<Select, String> {
        if self.symbol("*") {
            return Ok(Select::All);
        }
        if self.keyword("COUNT") {
            self.expect("(")?;
            self.expect(")")?;
            let name = if self.keyword("AS") { self.path()?.join(".") } else { "count".into() };
            return Ok(Select::Count(name));
        }
        let mut paths = Vec::new();
        loop {
            let path = self.path()?;
            let name = match self.keyword("AS") {
                true => self.path()?.join("."),
                false => path.last().cloned().unwrap_or_default(),
            };
            paths.push((path, name));
            if !self.symbol(",") {
                return Ok(Select::Paths(paths));
            }
        }
    }

    fn or(&mut self, depth: usize) -> Result<Filter, String> {
        let mut any = vec![self.and(depth)?];
        while self.keyword("OR") {
            any.push(self.and(depth)?);
        }
        Ok(Filter::Or(any))
    }

    fn and(&mut self, depth: usize) -> Result<Filter, String> {
        let mut all = vec![self.one(depth)?];
        while self.keyword("AND") {
            all.push(self.one(depth)?);
        }
        Ok(Filter::And(all))
    }

    fn one(&mut self, depth: usize) -> Result<Filter, String> {
        if depth > DEPTH_MAX {
            return Err("The query is nested too deeply.".into());
        }
        if self.keyword("NOT") {
            return Ok(Filter::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.symbol("(") {
            let inner = self.or(depth + 1)?;
            self.expect(")")?;
            return Ok(inner);
        }
        let function = [
            ("STARTSWITH", Function::StartsWith),
            ("ENDSWITH", Function::EndsWith),
            ("CONTAINS", Function::Contains),
        ];
        for (name, function) in function {
            if self.keyword(name) {
                self.expect("(")?;
                let path = self.path()?;
                self.expect(",")?;
                let text =
                    self.literal()?.as_str().ok_or_else(|| format!("{name} needs a text."))?.to_owned();
                self.expect(")")?;
                return Ok(Filter::Function(function, path, text));
            }
        }
        if self.keyword("IS_DEFINED") {
            return Ok(Filter::Defined(self.argument()?));
        }
        for (name, is) in TYPES {
            if self.keyword(name) {
                return Ok(Filter::Is(is, self.argument()?));
            }
        }
        let path = self.path()?;
        if self.keyword("IN") {
            return Ok(Filter::In(path, self.values()?));
        }
        if self.keyword("NIN") {
            return Ok(Filter::Not(Box::new(Filter::In(path, self.values()?))));
        }
        let operator = match self.next() {
            Some(Token::Symbol("=")) => Operator::Equal,
            Some(Token::Symbol("!=" | "<>")) => Operator::Unequal,
            Some(Token::Symbol("<")) => Operator::Less,
            Some(Token::Symbol("<=")) => Operator::LessOrEqual,
            Some(Token::Symbol(">")) => Operator::Greater,
            Some(Token::Symbol(">=")) => Operator::GreaterOrEqual,
            other => return Err(format!("The query has {other:?} where a comparison belongs.")),
        };
        Ok(Filter::Compare(path, operator, self.literal()?))
    }

    fn values(&mut self) -> Result<Vec<Value>, String> {
        self.expect("[")?;
        let mut values = Vec::new();
        while !self.symbol("]") {
            values.push(self.literal()?);
            if !self.symbol(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests;
