//! Reads `moco.h` as far as cbindgen's C goes: enums, structs, callbacks, functions. Anything else is an error, so that
//! nothing of the header is left out unnoticed.

use anyhow::{Context, Result, bail};

/// What a header declares, in its order.
#[derive(Default)]
pub struct Header {
    /// `#define NAME 1`: whole numbers only.
    pub numbers: Vec<(String, u64)>,
    /// Enumerations and their constants.
    pub enums: Vec<(String, Vec<(String, u64)>)>,
    /// Objects, structs and callbacks.
    pub types: Vec<(String, Kind)>,
    pub functions: Vec<Function>,
    /// `#define …_INIT { sizeof(name), … }`: the struct, and how many fields are given.
    initialisers: Vec<(String, usize)>,
}

/// What a name stands for.
pub enum Kind {
    /// A struct whose fields the library keeps to itself.
    Opaque,
    Struct(Vec<Variable>),
    Callback(Type, Vec<Variable>),
}

/// `result name(parameters)`.
pub struct Function {
    pub name: String,
    pub result: Type,
    pub parameters: Vec<Variable>,
}

/// A field or a parameter.
pub struct Variable {
    pub name: String,
    pub of: Type,
}

/// `base`, behind `pointers` stars; with `array`, the innermost star points at so many of them.
#[derive(Clone)]
pub struct Type {
    pub base: String,
    pub pointers: usize,
    pub array: Option<usize>,
}

/// Parses a whole header.
///
/// # Errors
/// Names the first declaration that is not understood.
pub fn header(text: &str) -> Result<Header> {
    let mut header = Header::default();
    let mut code = String::new();
    for line in without_comments(text)?.lines() {
        match line.trim_start().strip_prefix('#') {
            Some(directive) => {
                let words: Vec<&str> = directive.split_whitespace().collect();
                if let ["define", name, value] = words[..]
                    && let Ok(value) = value.parse()
                {
                    header.numbers.push((name.to_owned(), value));
                }
                header.initialisers.extend(initialiser(directive));
            }
            None => code.extend([line, "\n"]),
        }
    }
    let tokens = tokens(&code)?;
    let mut rest = &tokens[..];
    while !rest.is_empty() {
        let begin = rest;
        declaration(&mut rest, &mut header)
            .with_context(|| format!("not understood: {} …", begin[..begin.len().min(16)].join(" ")))?;
    }
    for (name, given) in &header.initialisers {
        let fields = header.types.iter().find_map(|(known, kind)| match kind {
            Kind::Struct(fields) if known == name => Some(fields.len()),
            _ => None,
        });
        if fields != Some(*given) {
            bail!(
                "the _INIT of `{name}` in cbindgen.toml gives {given} values, the struct has {} fields",
                fields.unwrap_or(0)
            );
        }
    }
    Ok(header)
}

/// A macro that sets every field of a struct of options.
fn initialiser(directive: &str) -> Option<(String, usize)> {
    let values = directive.split_once("_INIT { sizeof(")?.1;
    let name = values.split_once(')')?.0;
    Some((name.to_owned(), values.split(',').count()))
}

fn without_comments(text: &str) -> Result<String> {
    let mut code = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        code.push_str(before);
        rest = after.split_once("*/").context("a comment does not end")?.1;
    }
    code.push_str(rest);
    Ok(code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |all, l| all + l + "\n"))
}

/// Words, and single punctuation marks.
fn tokens(code: &str) -> Result<Vec<&str>> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => {
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            '"' => 2 + rest[1..].find('"').context("a string does not end")?,
            '{' | '}' | '(' | ')' | '[' | ']' | ',' | ';' | ':' | '=' | '*' => 1,
            other => bail!("`{other}` is not expected in a header"),
        };
        tokens.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    Ok(tokens)
}

fn declaration(rest: &mut &[&str], header: &mut Header) -> Result<()> {
    match rest {
        // extern "C" { … }, whose inside is read like the rest.
        ["extern", language, "{", ..] if language.starts_with('"') => *rest = &rest[3..],
        ["}", after @ ..] => *rest = after,
        ["enum", ..] => header.enums.push(enumeration(rest)?),
        // C's two ways to name an enumeration's type.
        ["typedef", "enum", name, _, ";", ..] | ["typedef", "uint32_t", name, ";", ..] => {
            let name = (*name).to_owned();
            if !header.enums.iter().any(|(known, _)| *known == name) {
                bail!("`{name}` is not an enumeration");
            }
            let end = rest.iter().position(|t| *t == ";").context("no `;`")?;
            *rest = &rest[end + 1..];
        }
        ["typedef", "struct", "{", ..] => {
            *rest = &rest[3..];
            let fields = variables(rest, ";", "}")?;
            header.types.push((word(rest)?, Kind::Struct(fields)));
            expect(rest, ";")?;
        }
        ["typedef", "struct", tag, name, ";", after @ ..] if tag == name => {
            header.types.push(((*name).to_owned(), Kind::Opaque));
            *rest = after;
        }
        ["typedef", ..] => {
            *rest = &rest[1..];
            let result = type_of(rest)?;
            expect(rest, "(")?;
            expect(rest, "*")?;
            let name = word(rest)?;
            expect(rest, ")")?;
            expect(rest, "(")?;
            header.types.push((name, Kind::Callback(result, variables(rest, ",", ")")?)));
            expect(rest, ";")?;
        }
        _ => {
            if rest[0] == "MOCO_MUST_USE" {
                *rest = &rest[1..];
            }
            let result = type_of(rest)?;
            let name = word(rest)?;
            expect(rest, "(")?;
            let parameters = variables(rest, ",", ")")?;
            expect(rest, ";")?;
            header.functions.push(Function { name, result, parameters });
        }
    }
    Ok(())
}

fn enumeration(rest: &mut &[&str]) -> Result<(String, Vec<(String, u64)>)> {
    expect(rest, "enum")?;
    let name = word(rest)?;
    if rest.first() == Some(&":") {
        expect(rest, ":")?;
        expect(rest, "uint32_t")?;
    }
    expect(rest, "{")?;
    let mut constants = Vec::new();
    while rest.first() != Some(&"}") {
        let constant = word(rest)?;
        expect(rest, "=")?;
        let value = word(rest)?;
        constants.push((constant, value.parse().with_context(|| format!("`{value}` is not a number"))?));
        expect(rest, ",")?;
    }
    expect(rest, "}")?;
    expect(rest, ";")?;
    Ok((name, constants))
}

/// Fields or parameters up to and with `end`. `(void)` is none.
fn variables(rest: &mut &[&str], separator: &str, end: &str) -> Result<Vec<Variable>> {
    let mut variables = Vec::new();
    if let ["void", after @ ..] = rest
        && after.first() == Some(&end)
    {
        *rest = after;
    }
    while rest.first() != Some(&end) {
        let mut of = type_of(rest)?;
        // `size_t (*shape)[4]`: a pointer to an array.
        let name = if rest.first() == Some(&"(") {
            expect(rest, "(")?;
            expect(rest, "*")?;
            let name = word(rest)?;
            for mark in [")", "["] {
                expect(rest, mark)?;
            }
            of.array = Some(word(rest)?.parse().context("the length of an array")?);
            of.pointers += 1;
            expect(rest, "]")?;
            name
        } else {
            word(rest)?
        };
        variables.push(Variable { name, of });
        if rest.first() != Some(&end) {
            expect(rest, separator)?;
        }
    }
    expect(rest, end)?;
    Ok(variables)
}

fn type_of(rest: &mut &[&str]) -> Result<Type> {
    skip_const(rest);
    let base = word(rest)?;
    skip_const(rest);
    let mut pointers = 0;
    while rest.first() == Some(&"*") {
        *rest = &rest[1..];
        skip_const(rest);
        pointers += 1;
    }
    Ok(Type { base, pointers, array: None })
}

fn skip_const(rest: &mut &[&str]) {
    while rest.first() == Some(&"const") {
        *rest = &rest[1..];
    }
}

fn word(rest: &mut &[&str]) -> Result<String> {
    let word = rest.first().context("the header ends here")?;
    if !word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        bail!("a name or number was expected, not `{word}`");
    }
    *rest = &rest[1..];
    Ok((*word).to_owned())
}

fn expect(rest: &mut &[&str], wanted: &str) -> Result<()> {
    match rest.first() {
        Some(found) if *found == wanted => *rest = &rest[1..],
        found => bail!("`{wanted}` was expected, not `{}`", found.unwrap_or(&"the end")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_declaration_is_read() {
        let text = "/** Doc; with } marks. */\n#define MOCO_X 7\n#define MOCO_INIT { 0 }\nenum e\n#if 1\n : uint32_t\n#endif\n\
                    { A = 0, B = 255, };\ntypedef enum e e;\ntypedef uint32_t e;\ntypedef struct o o;\n\
                    typedef struct { size_t n; const char *const *names; } s;\n\
                    typedef int (*cb)(const s *x, void *user);\nextern \"C\" {\n\
                    MOCO_MUST_USE o *f(size_t (*shape)[4], o **out);\nvoid g(void); // end\n}";
        let header = header(text).unwrap();
        assert_eq!(header.numbers, [("MOCO_X".to_owned(), 7)]);
        assert_eq!(header.enums[0].1[1], ("B".to_owned(), 255));
        let names: Vec<&str> = header.types.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["o", "s", "cb"]);
        let [f, g] = &header.functions[..] else { panic!("two functions") };
        assert_eq!((f.parameters[0].of.array, f.parameters[0].name.as_str()), (Some(4), "shape"));
        assert_eq!((f.parameters[1].of.pointers, f.result.pointers), (2, 1));
        assert!(g.parameters.is_empty() && g.result.base == "void");
    }

    #[test]
    fn an_initialiser_that_forgets_a_field_is_named() {
        let text =
            |values: &str| format!("typedef struct {{ int n; int m; }} s;\n#define S_INIT {{ sizeof(s){values} }}\n");
        assert!(header(&text(", 0")).is_ok());
        let error = header(&text("")).err().unwrap().to_string();
        assert!(error.contains("`s`") && error.contains("2 fields"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for text in
            ["union u { int a; };", "int a[3];", "typedef unsigned moco;", "int f(int a", "/* open", "int f(int a...);"]
        {
            assert!(header(text).is_err(), "{text}");
        }
        let error = format!("{:#}", header("int f(int a); static int x = 3;").err().unwrap());
        assert!(error.contains("static int x"), "{error}");
    }
}
