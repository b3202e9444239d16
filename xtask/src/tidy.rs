//! What compilers do not check: first lines, lengths, paths named in documents, crates and hosts that must not appear.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Lines above which a file is worth splitting.
const LONG: usize = 500;

/// Hosts of package registries and model hubs' mirrors: packages are named, never where they lie.
const HOSTS: [&str; 6] =
    ["crates.io", "pypi.org", "files.pythonhosted", "registry.npmjs", "deb.debian", "static.rust-lang"];

/// Licences that allow any use; MPL-2.0, which concerns its own files only, is cbindgen's, a tool.
const PERMISSIVE: [&str; 11] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unlicense",
    "CC0-1.0",
    "Unicode-3.0",
    "MPL-2.0",
];

/// Checks the repository.
///
/// # Errors
/// Names every place that is wrong.
pub fn run() -> Result<()> {
    let root = shell::root();
    let files = tracked(&root)?;
    let mut wrong = Vec::new();
    for path in &files {
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        if !matches!(&*extension, "rs" | "md" | "toml" | "c" | "h" | "cpp" | "hpp" | "in" | "sh" | "py" | "txt") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root.join(path)) else { continue };
        if extension == "rs" {
            rust_file(path, &text, &mut wrong);
        }
        if extension == "md" && !path.starts_with("tests/fixtures") {
            document(&root, path, &text, &mut wrong);
        }
        hosts(path, &text, &mut wrong);
    }
    forbidden_crates(&mut wrong)?;
    licences(&mut wrong)?;
    if !wrong.is_empty() {
        bail!("not tidy:\n  {}", wrong.join("\n  "));
    }
    println!("{} files are tidy", files.len());
    Ok(())
}

/// Files that git knows or would know.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let list = shell::capture(&mut git).context("tidy asks git which files belong to the repository")?;
    Ok(list.lines().map(PathBuf::from).filter(|p| root.join(p).is_file()).collect())
}

fn rust_file(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let generated = text.starts_with("// @generated");
    if !text.starts_with("//! ") && !generated {
        wrong.push(format!("{}: the first line must be `//!` and say what the file is for", path.display()));
    }
    let lines = text.lines().count();
    if lines > LONG && !generated {
        println!("note: {} has {lines} lines; {LONG} are long already", path.display());
    }
}

/// Paths in backquotes, and relative links, exist.
fn document(root: &Path, path: &Path, text: &str, wrong: &mut Vec<String>) {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut missing = |name: &str, line: usize| {
        let candidates = [root.join(name), root.join(folder).join(name)];
        if !candidates.iter().any(|p| p.exists()) {
            wrong.push(format!("{}:{line}: names `{name}`, which does not exist", path.display()));
        }
    };
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_code {
            continue;
        }
        for name in line.split('`').skip(1).step_by(2).filter(|name| is_path(root, name)) {
            missing(name.trim_end_matches('/'), number + 1);
        }
        for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                missing(target, number + 1);
            }
        }
    }
}

/// Whether a word in backquotes means a file here: it begins with a folder of the root, or is a file name of a
/// document.
fn is_path(root: &Path, name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) && !name.starts_with(['/', '.']);
    let Some((first, _)) = name.split_once('/') else {
        return plain && name.ends_with(".md");
    };
    plain && root.join(first).is_dir() && !matches!(first, "target" | "third_party")
}

fn hosts(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let is_this_file = path == Path::new("xtask/src/tidy.rs");
    for host in HOSTS.iter().filter(|host| !is_this_file && text.contains(**host)) {
        wrong.push(format!("{}: names the host {host}; name the package instead", path.display()));
    }
}

/// Every crate that is compiled in may be used under a permissive licence.
fn licences(wrong: &mut Vec<String>) -> Result<()> {
    let list = shell::capture(&mut shell::cargo(&[
        "tree",
        "--workspace",
        "--prefix",
        "none",
        "--edges",
        "normal,build",
        "--format",
        "{p}|{l}",
    ])?)?;
    let crates: BTreeSet<&str> =
        list.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty()).collect();
    for line in crates {
        let (name, licence) = line.split_once('|').unwrap_or((line, ""));
        if !permissive(licence) {
            wrong.push(format!("the licence of {name}, `{licence}`, is not known to be permissive"));
        }
    }
    Ok(())
}

/// Whether an SPDX expression leaves a choice that is on the list.
fn permissive(expression: &str) -> bool {
    let expression = expression.trim();
    for (separator, all) in [(" OR ", false), ("/", false), (" AND ", true)] {
        let parts = split_outside_brackets(expression, separator);
        if parts.len() > 1 {
            return if all { parts.into_iter().all(permissive) } else { parts.into_iter().any(permissive) };
        }
    }
    match expression.strip_prefix('(').and_then(|e| e.strip_suffix(')')) {
        Some(inner) => permissive(inner),
        None => PERMISSIVE.contains(&expression.split(" WITH ").next().unwrap_or_default()),
    }
}

fn split_outside_brackets<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ if depth == 0 && i >= begin && text[i..].starts_with(separator) => {
                parts.push(&text[begin..i]);
                begin = i + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// `tokenizers` comes with newer candle and is not wanted.
fn forbidden_crates(wrong: &mut Vec<String>) -> Result<()> {
    let tree =
        shell::capture(&mut shell::cargo(&["tree", "--workspace", "--prefix", "none", "--edges", "normal,build"])?)?;
    for line in tree.lines().filter(|line| line.split(' ').next() == Some("tokenizers")) {
        wrong.push(format!("cargo tree has {line}, which must not be there"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_must_leave_a_permissive_choice() {
        for fine in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permissive(fine), "{fine}");
        }
        for not in ["GPL-3.0", "MIT AND GPL-2.0-only", "CC-BY-NC-4.0", ""] {
            assert!(!permissive(not), "{not}");
        }
    }

    #[test]
    fn a_rust_file_without_its_first_line_is_named() {
        let mut wrong = Vec::new();
        rust_file(Path::new("a.rs"), "use std::fs;\n", &mut wrong);
        rust_file(Path::new("b.rs"), "//! Fine.\n", &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
    }

    #[test]
    fn a_path_that_does_not_exist_is_named() {
        let root = shell::root();
        let mut wrong = Vec::new();
        let text = "`xtask/src/main.rs`, `xtask/src/absent.rs`, [a](xtask/none.md), `cargo xtask`\n```\n`xtask/code.rs`\n```\n";
        document(&root, Path::new("README.md"), text, &mut wrong);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }

    #[test]
    fn a_registry_host_is_named() {
        let mut wrong = Vec::new();
        hosts(Path::new("a.toml"), &format!("index = \"https://{}\"", HOSTS[1]), &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
    }
}
