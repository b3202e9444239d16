//! What the environment says about the Hub, under the names that Python's `huggingface_hub` reads.

use std::path::{Path, PathBuf};
use std::{env, fmt};

use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// Where the Hub is, where its files are kept, and as whom it is asked.
#[derive(Clone)]
pub struct Settings {
    /// Address of the Hub, without a `/` at the end: `HF_ENDPOINT`.
    pub endpoint: String,
    /// Folder of the cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or what the file `HF_TOKEN_PATH`, or `token` in `HF_HOME`, holds.
    pub token: Option<String>,
    /// No network at all: `HF_HUB_OFFLINE` is 1, ON, YES or TRUE.
    pub offline: bool,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`Error::Settings`] naming a variable that cannot be used, or all of them if there is no place for the cache.
    pub fn from_env() -> Result<Settings> {
        from(&|name| env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        let Settings { endpoint, cache, offline, .. } = self;
        f.debug_struct("Settings")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("offline", offline)
            .finish()
    }
}

fn from(variable: &dyn Fn(&str) -> Option<String>) -> Result<Settings> {
    let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
    let user = first(&["HOME", "USERPROFILE"]).map(PathBuf::from);
    let path = |text: String| match (text.strip_prefix("~/"), &user) {
        (Some(rest), Some(user)) => user.join(rest),
        _ => PathBuf::from(text),
    };
    let home = variable("HF_HOME").map(path).or_else(|| {
        let caches = variable("XDG_CACHE_HOME").map(path).or_else(|| Some(user.as_ref()?.join(".cache")))?;
        Some(caches.join("huggingface"))
    });
    let cache = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(path);
    let cache = cache.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or_else(|| {
        Error::Settings("there is no place for the cache of the Hub's files: set HF_HUB_CACHE, HF_HOME or HOME".into())
    })?;
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        return Err(Error::Settings(format!("HF_ENDPOINT is `{endpoint}`; it must begin with https:// or http://")));
    }
    let token_file = variable("HF_TOKEN_PATH").map(path).or_else(|| Some(home.as_ref()?.join("token")));
    let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| read_token(&token_file?));
    let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(Error::Settings(
            "the token (HF_TOKEN, or the token file) holds blanks or signs no token has".into(),
        ));
    }
    let yes = |text: String| matches!(&*text.trim().to_uppercase(), "1" | "ON" | "YES" | "TRUE");
    let offline = first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(yes);
    Ok(Settings { endpoint, cache, token, offline })
}

fn read_token(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Settings> {
        let variables: Vec<(String, String)> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        from(&|name| variables.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_cache_is_where_python_keeps_it() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/m")], "/h/m/hub"),
            (&[("HF_HOME", "/m"), ("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(with(variables).unwrap().cache, Path::new(cache));
        }
        assert!(with(&[]).unwrap_err().to_string().contains("HF_HUB_CACHE"));
    }

    #[test]
    fn endpoint_token_and_offline_mode_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let settings = with(&[("HF_HOME", home), ("HF_ENDPOINT", "http://localhost:1/")]).unwrap();
        assert_eq!((&*settings.endpoint, settings.token.as_deref()), ("http://localhost:1", Some("hf_file")));
        assert!(!settings.offline && !format!("{settings:?}").contains("hf_file"));
        let settings = with(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable"), ("HF_HUB_OFFLINE", "true")]).unwrap();
        assert_eq!((settings.token.as_deref(), settings.offline), (Some("hf_variable"), true));
        assert!(
            with(&[("HF_HOME", "/"), ("HF_ENDPOINT", "localhost")]).unwrap_err().to_string().contains("HF_ENDPOINT")
        );
        assert!(with(&[("HF_HOME", "/"), ("HF_TOKEN", "a b")]).unwrap_err().to_string().contains("HF_TOKEN"));
    }
}
