//! The official Python client, `huggingface_hub`, against the same stand-in and the same cache: what it accepts is a fair
//! Hub, and what it finds is a proper cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use moco_hub::{Hub, PushOptions, Settings, Upload};
use moco_tests::hub::{HubServer, TOKEN};

use super::{backbone, fetch, reference, settings};

/// Runs a script; `HF_HOME` is `home`, so that its cache is `home/hub`.
fn python(server: &HubServer, home: &Path, offline: bool, script: &str) -> String {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/huggingface_hub");
    assert!(packages.is_dir(), "{} is missing: run `cargo xtask setup`", packages.display());
    let mut python = Command::new("python3");
    python.arg("-c").arg(script).env("PYTHONPATH", packages);
    for name in ["HF_HUB_CACHE", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
        python.env_remove(name);
    }
    python.env("HF_HOME", home).env("HF_ENDPOINT", server.endpoint()).env("HF_TOKEN", TOKEN);
    // Another protocol than that of the Hub itself, which needs a server of its own.
    python.env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
    python.env("HF_HUB_DISABLE_PROGRESS_BARS", "1").env("HF_HUB_DISABLE_TELEMETRY", "1");
    let output = python.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}\n{err}");
    out.trim().to_owned()
}

#[test]
fn each_client_finds_offline_what_the_other_fetched() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let cache = home.path().join("hub");
    let (one, two) = (backbone(1), backbone(2));
    let files: [(&str, &[u8]); 3] = [("backbone.safetensors", &one), ("README.md", b"# card"), ("deep/er.pth", &two)];
    let commit = server.commit("a/b", "main", &files);
    server.commit("a/c", "main", &files);
    server.tag("a/c", "v1", &commit);

    let script = "from huggingface_hub import hf_hub_download as get\n\
                  print(get('a/b', 'backbone.safetensors')); print(get('a/b', 'deep/er.pth', revision='main'))";
    let by_python: Vec<PathBuf> = python(&server, home.path(), false, script).lines().map(PathBuf::from).collect();
    assert!(std::fs::read(&by_python[0]).unwrap() == one);
    let offline = Settings { offline: true, ..settings(&server, &cache) };
    assert_eq!(fetch(&offline, "hf://a/b").unwrap(), by_python[0]);
    assert_eq!(fetch(&offline, "hf://a/b/deep/er.pth").unwrap(), by_python[1]);
    assert_eq!(fetch(&offline, &format!("hf://a/b@{commit}/deep/er.pth")).unwrap(), by_python[1]);

    let online = settings(&server, &cache);
    let ours = [fetch(&online, "hf://a/c").unwrap(), fetch(&online, "hf://a/c/deep/er.pth").unwrap()];
    fetch(&online, "hf://a/c@main/README.md").unwrap();
    let script = "from huggingface_hub import hf_hub_download as get, scan_cache_dir, snapshot_download\n\
                  print(get('a/c', 'backbone.safetensors')); print(get('a/c', 'deep/er.pth'))\n\
                  print(snapshot_download('a/c'))\n\
                  info = scan_cache_dir()\n\
                  print(sorted((r.repo_id, r.nb_files) for r in info.repos), [str(w) for w in info.warnings])";
    let found = python(&server, home.path(), true, script);
    let found: Vec<&str> = found.lines().collect();
    assert_eq!([Path::new(found[0]), Path::new(found[1])], [&*ours[0], &*ours[1]]);
    assert_eq!(Some(Path::new(found[2])), ours[0].parent());
    assert_eq!(found[3], "[('a/b', 2), ('a/c', 3)] []");
}

#[test]
fn python_meets_the_errors_of_a_hub() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.commit("a/b", "main", &[("README.md", b"# card")]);
    server.commit("a/gated", "main", &[("README.md", b"# card")]);
    server.restrict("a/gated", false, true);
    let script = "from huggingface_hub import hf_hub_download as get\n\
                  def kind(*args, **more):\n\
                  \x20try: get(*args, **more)\n\
                  \x20except Exception as error: return type(error).__name__\n\
                  print(kind('a/none', 'x'), kind('a/b', 'x'), kind('a/b', 'README.md', revision='v9'),\n\
                  \x20     kind('a/gated', 'README.md', token=False))";
    assert_eq!(
        python(&server, home.path(), false, script),
        "RepositoryNotFoundError RemoteEntryNotFoundError RevisionNotFoundError GatedRepoError"
    );
}

#[test]
fn what_one_client_uploads_the_other_downloads() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let bytes = backbone(1);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("backbone.safetensors"), &bytes).unwrap();
    std::fs::write(folder.path().join("README.md"), "---\nlicense: mit\n---\n# by python\n").unwrap();
    server.state().part_size = Some(9000);
    let script = format!(
        "from huggingface_hub import HfApi\napi = HfApi()\napi.create_repo('p/y', private=True)\n\
         print(api.upload_folder(repo_id='p/y', folder_path={:?}, commit_message='by python').oid)",
        folder.path()
    );
    let commit = python(&server, home.path(), false, &script);
    let known = Settings { token: Some(TOKEN.into()), ..settings(&server, &home.path().join("ours")) };
    let path = fetch(&known, &format!("hf://p/y@{commit}")).unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);

    let other = backbone(2);
    let card = "---\nlicense: \"cc0-1.0\"\nlibrary_name: moco\ntags:\n- \"moco\"\n---\n\n# ours\n";
    let files =
        [Upload { name: "backbone.safetensors", bytes: &other }, Upload { name: "README.md", bytes: card.as_bytes() }];
    let options = PushOptions { create: Some(false), message: "by us".into() };
    Hub::new(known).push(&reference("hf://o/urs"), &files, &options, &mut |_| ()).unwrap();
    let script = "from huggingface_hub import hf_hub_download, ModelCard, HfApi\n\
                  print(hf_hub_download('o/urs', 'backbone.safetensors'))\n\
                  card = ModelCard.load('o/urs'); print(card.data.license, card.data.library_name, card.data.tags)\n\
                  print(sorted(HfApi().list_repo_files('o/urs')))";
    let found = python(&server, home.path(), false, script);
    let found: Vec<&str> = found.lines().collect();
    assert!(std::fs::read(found[0]).unwrap() == other);
    assert_eq!(found[1], "cc0-1.0 moco ['moco']");
    assert_eq!(found[2], "['.gitattributes', 'README.md', 'backbone.safetensors']");
}
