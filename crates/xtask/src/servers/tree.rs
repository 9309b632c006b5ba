//! Servers unpacked from Debian's packages.
//!
//! Nothing is installed: the packages are only unpacked, their scripts do not run, and the system's own
//! libraries are not touched. Programs of the tree see it as their file system (bubblewrap). Where that
//! is forbidden, as in many containers, they are pointed at the tree's loader and libraries (patchelf).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{getgid, getuid};

use super::unpack::{self, is_successful};
use super::versions::Packages;
use crate::workspace::succeed;

/// Where programs of a patched tree are linked to.
const PATCHED_BIN: &str = "usr/ownbin";

/// An unpacked tree.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: PathBuf,
    boxed: bool,
}

impl Tree {
    /// The tree of some packages, which are unpacked unless they are there.
    pub(super) fn at(folder: &Path, packages: &Packages) -> Result<Self> {
        let root = folder.join(packages.folder);
        unpack::require(packages, &root)?;
        let boxed = !patched(&root).exists() && can_box();
        let tree = Self { root, boxed };
        if !boxed && !patched(&tree.root).exists() {
            tree.patch()?;
        }
        Ok(tree)
    }

    /// Where programs find a file of the tree.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        if self.boxed { Path::new("/").join(inside) } else { self.root.join(inside) }
    }

    /// The files in a folder of the tree.
    pub(super) fn list(&self, inside: &str) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.root.join(inside))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// A program of the tree, run by an ordinary user who may write to `data` only.
    pub(super) fn command(
        &self,
        data: &Path,
        variables: &[(&str, String)],
        program: impl AsRef<OsStr>,
    ) -> Result<Command> {
        let mut bin: Vec<String> = self
            .list("usr/lib/postgresql")
            .unwrap_or_default()
            .into_iter()
            .map(|version| format!("usr/lib/postgresql/{version}/bin"))
            .chain(["usr/lib/rabbitmq/bin", "usr/lib/erlang/bin"].map(str::to_owned))
            .map(|folder| self.path(&folder).display().to_string())
            .collect();
        let mut command = if self.boxed {
            bin.extend(["/usr/sbin".to_owned(), "/usr/bin".to_owned()]);
            self.boxed(data)?
        } else {
            bin.push(self.root.join(PATCHED_BIN).display().to_string());
            bin.extend(["/usr/bin".to_owned(), "/bin".to_owned()]);
            unboxed(data)?
        };
        command
            .arg("/usr/bin/env")
            .arg("-i")
            .arg(format!("PATH={}", bin.join(":")))
            .arg(format!("HOME={}", data.display()))
            .args(["LANG=C.UTF-8", "TZ=UTC"])
            .args(variables.iter().map(|(name, value)| format!("{name}={value}")))
            .arg(program)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Options for a mysqld that is not installed at the root.
    pub(super) fn mysqld_options(&self) -> Vec<String> {
        if self.boxed {
            return Vec::new();
        }
        let root = self.root.display();
        vec![
            format!("--basedir={root}/usr"),
            format!("--lc-messages-dir={root}/usr/share/mysql"),
            format!("--character-sets-dir={root}/usr/share/mysql/charsets"),
            format!("--plugin-dir={root}/usr/lib/mysql/plugin"),
        ]
    }

    /// Root is an ordinary user inside, because PostgreSQL refuses to run as root.
    fn boxed(&self, data: &Path) -> Result<Command> {
        let (uid, gid) = match getuid().as_raw() {
            0 => (1000, 1000),
            uid => (uid, getgid().as_raw()),
        };
        let (passwd, group) = (data.join("passwd"), data.join("group"));
        fs::write(&passwd, format!("dev:x:{uid}:{gid}:dev:{}:/bin/sh\n", data.display()))?;
        fs::write(&group, format!("dev:x:{gid}:\n"))?;
        let mut command = Command::new("bwrap");
        command
            .args(["--unshare-user", "--uid", &uid.to_string(), "--gid", &gid.to_string()])
            .args(["--unshare-ipc", "--new-session"]);
        for (from, to) in [(self.root.join("usr"), "/usr"), (self.root.join("etc"), "/etc")] {
            command.arg("--ro-bind").arg(from).arg(to);
        }
        for (target, link) in [
            ("usr/bin", "/bin"),
            ("usr/sbin", "/sbin"),
            ("usr/lib", "/lib"),
            ("usr/lib64", "/lib64"),
        ] {
            command.args(["--symlink", target, link]);
        }
        command
            .args(["--dev", "/dev", "--proc", "/proc", "--dir", "/tmp", "--dir", "/run"])
            .args(["--dir", "/var", "--bind"])
            .args([data, data])
            .arg("--ro-bind")
            .args([passwd.as_os_str(), OsStr::new("/etc/passwd")])
            .arg("--ro-bind")
            .args([group.as_os_str(), OsStr::new("/etc/group")])
            .args(["--ro-bind", "/etc/hosts", "/etc/hosts"])
            .args(["--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf"])
            .arg("--chdir")
            .arg(data);
        Ok(command)
    }

    /// Points the programs of the tree at its own loader, libraries and folders.
    fn patch(&self) -> Result<()> {
        let root = self.root.display().to_string();
        let script = format!(
            r#"set -eu
            for f in "{root}"/usr/sbin/mysqld "{root}"/usr/sbin/pgbouncer "{root}"/usr/bin/mysql* \
                     "{root}"/usr/lib/postgresql/*/bin/* \
                     $(find "{root}/usr/lib/erlang" -type f -perm /111 2>/dev/null); do
                [ -L "$f" ] && continue
                patchelf --print-interpreter "$f" >/dev/null 2>&1 || continue
                patchelf --set-interpreter "{root}/usr/lib64/ld-linux-x86-64.so.2" \
                         --force-rpath --set-rpath "{root}/usr/lib/x86_64-linux-gnu" "$f"
            done
            if [ -d "{root}/usr/lib/erlang" ]; then
                sed -i "s#/usr/lib/erlang#{root}/usr/lib/erlang#g" \
                    "{root}"/usr/lib/erlang/bin/erl "{root}"/usr/lib/erlang/bin/start \
                    "{root}"/usr/lib/erlang/erts-*/bin/erl "{root}"/usr/lib/erlang/erts-*/bin/start
            fi
            mkdir -p "{root}/{PATCHED_BIN}"
            for f in "{root}"/usr/bin/mysql* "{root}/usr/sbin/mysqld" "{root}/usr/sbin/pgbouncer"; do
                [ ! -e "$f" ] || ln -sf "$f" "{root}/{PATCHED_BIN}/"
            done"#
        );
        succeed(Command::new("sh").args(["-c", &script])).context("patching the servers")?;
        fs::write(patched(&self.root), "")?;
        Ok(())
    }
}

/// Without bubblewrap, root becomes `nobody`.
fn unboxed(data: &Path) -> Result<Command> {
    if !getuid().is_root() {
        let mut command = Command::new("env");
        command.current_dir(data).arg("--");
        return Ok(command);
    }
    succeed(Command::new("chown").arg("-R").arg("nobody:nogroup").arg(data))?;
    let mut command = Command::new("setpriv");
    command.current_dir(data).args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
    Ok(command)
}

fn patched(root: &Path) -> PathBuf {
    root.join("patched")
}

fn can_box() -> bool {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-user", "--uid", "1000", "--gid", "1000"]).args([
        "--ro-bind",
        "/",
        "/",
        "true",
    ]);
    is_successful(&mut command)
}
