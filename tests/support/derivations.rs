//! Derivations for tests, written out as Nix expressions that need no nixpkgs: bash and the tools of a
//! minimal Debian. Each is deterministic: built again it gives the same bytes.

/// The size of the file that [`large_file`] makes, in bytes.
pub const LARGE_FILE_BYTES: u64 = 300 * 1024 * 1024;

/// A derivation to be: a name, a script, outputs, and the derivations whose outputs the script knows by a
/// variable.
#[derive(Clone)]
pub struct Derivation {
    name: String,
    script: String,
    system: String,
    outputs: Vec<String>,
    inputs: Vec<Input>,
    attributes: Vec<(String, String)>,
}

#[derive(Clone)]
struct Input {
    variable: String,
    derivation: Derivation,
    output: String,
}

impl Derivation {
    /// One output, `$out`, made by a bash script that stops at the first command that fails.
    pub fn new(name: &str, script: &str) -> Derivation {
        Derivation {
            name: name.to_owned(),
            script: script.to_owned(),
            system: "builtins.currentSystem".to_owned(),
            outputs: vec!["out".to_owned()],
            inputs: Vec::new(),
            attributes: Vec::new(),
        }
    }

    /// The same with these outputs instead, each a variable of the script.
    pub fn outputs(mut self, names: &[&str]) -> Derivation {
        self.outputs = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The same with the script's variable `variable` holding the path of that derivation's first output.
    pub fn input(self, variable: &str, derivation: &Derivation) -> Derivation {
        let output = derivation.outputs[0].clone();
        self.input_output(variable, derivation, &output)
    }

    /// The same with the script's variable `variable` holding the path of that derivation's output called
    /// `output`.
    pub fn input_output(mut self, variable: &str, derivation: &Derivation, output: &str) -> Derivation {
        let derivation = derivation.clone();
        self.inputs.push(Input { variable: variable.to_owned(), derivation, output: output.to_owned() });
        self
    }

    /// The same for another system than this machine's.
    pub fn system(mut self, system: &str) -> Derivation {
        self.system = quoted(system);
        self
    }

    /// The same with another attribute, its value a piece of Nix.
    pub fn attribute(mut self, name: &str, nix: &str) -> Derivation {
        self.attributes.push((name.to_owned(), nix.to_owned()));
        self
    }

    /// The names of its outputs, in the order declared.
    pub fn output_names(&self) -> &[String] {
        &self.outputs
    }

    /// The Nix expression of the derivation.
    pub fn to_nix(&self) -> String {
        // The last command must be a builtin: bash becomes a last external command, coreutils close their
        // outputs before they exit, and Nix takes that for the end of the builder and kills it.
        let script = quoted(&format!("{}\n:\n", self.script));
        let outputs = self.outputs.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(" ");
        let mut nix = format!(
            "(derivation {{ name = {}; system = {}; builder = \"/bin/bash\"; \
             args = [ \"-e\" \"-c\" {script} ]; PATH = \"/usr/bin:/bin\"; outputs = [ {outputs} ];",
            quoted(&self.name),
            self.system
        );
        for input in &self.inputs {
            nix.push_str(&format!(" {} = {}.{};", input.variable, input.derivation.to_nix(), input.output));
        }
        for (name, value) in &self.attributes {
            nix.push_str(&format!(" {name} = {value};"));
        }
        nix.push_str(" })");
        nix
    }
}

/// A string as Nix writes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}

/// A file that says `text`.
pub fn text_file(name: &str, text: &str) -> Derivation {
    Derivation::new(name, &format!("echo '{text}' > \"$out\""))
}

/// Says a line, then fails with status 3.
pub fn failing(name: &str) -> Derivation {
    Derivation::new(name, "echo 'the last words of a failing build'\nexit 3")
}

/// Three outputs: `out` refers to `lib`, `lib` to `doc` and to itself, and `dev` to both `out` and `lib`.
pub fn multiple_outputs(name: &str) -> Derivation {
    let script = r#"
mkdir -p "$out/bin" "$lib" "$dev" "$doc"
echo "a manual" > "$doc/manual"
echo "$doc $lib" > "$lib/refers"
printf '#!/bin/sh\ncat %s/refers\n' "$lib" > "$out/bin/program"
chmod +x "$out/bin/program"
echo "$out $lib" > "$dev/refers"
"#;
    Derivation::new(name, script).outputs(&["out", "lib", "dev", "doc"])
}

/// A tree with all that a NAR can hold: symlinks (within, out of it, dangling), an executable, an empty
/// folder, an empty file, names that are not ASCII, are not UTF-8, or hold spaces, a line break and other odd
/// characters.
pub fn curious_tree(name: &str) -> Derivation {
    let script = r#"
mkdir -p "$out/bin" "$out/empty folder" "$out/deep/er/and/deeper"
printf '#!/bin/sh\necho hello\n' > "$out/bin/hello"
chmod +x "$out/bin/hello"
ln -s bin/hello "$out/within"
ln -s "$out/bin/hello" "$out/absolute"
ln -s /nowhere/at/all "$out/dangling"
ln -s . "$out/itself"
: > "$out/empty file"
echo 1 > "$out/größe-水-🌊"
echo 2 > "$out/"$'not-utf8-\xff\xfe\x80'
echo 3 > "$out/"$'line\nbreak'
echo 4 > "$out/.hidden"
echo 5 > "$out/-dash"
echo 6 > "$out/quote\"and'back\\slash"
echo 7 > "$out/percent%20+plus"
echo "$out" > "$out/deep/er/and/deeper/self"
"#;
    Derivation::new(name, script)
}

/// A folder with one file of [`LARGE_FILE_BYTES`] that does not compress, made in a second or two.
pub fn large_file(name: &str) -> Derivation {
    // 4 MiB of pseudo-random words, then 75 blocks each the exclusive-or of that and a rotation of it: no two
    // alike, and no repetition inside a compressor's window.
    let script = r#"
mkdir -p "$out"
perl -e '
    my ($state, @words) = (20260101);
    for (1 .. 1 << 20) { $state = ($state * 1664525 + 1013904223) & 0xffffffff; push @words, $state ^ ($state >> 15); }
    my $base = pack "N*", @words;
    for my $block (1 .. 75) {
        my $at = $block * 52711 + 1;
        print $base ^ (substr($base, $at) . substr($base, 0, $at));
    }
' > "$out/large"
"#;
    Derivation::new(name, script)
}

/// A file of so many bytes that do not compress.
pub fn noise(name: &str, bytes: u32) -> Derivation {
    Derivation::new(name, &noise_script(bytes, "$out"))
}

/// A folder that begins with a small file, `first`, to be held, and has so many bytes that do not compress
/// behind it.
pub fn noise_behind_a_file(name: &str, bytes: u32) -> Derivation {
    let script =
        format!("mkdir \"$out\"\necho first > \"$out/first\"\n{}", noise_script(bytes, "$out/noise"));
    Derivation::new(name, &script)
}

/// Lines that write so many bytes to a file, which do not compress.
pub fn noise_script(bytes: u32, file: &str) -> String {
    format!(
        r#"perl -e '
    my $state = 20260102;
    for (1 .. {words}) {{ $state = ($state * 1664525 + 1013904223) & 0xffffffff; print pack "N", $state ^ ($state >> 15); }}
' > "{file}""#,
        words = bytes / 4
    )
}

/// One derivation with `length` outputs `o1`, `o2` and so on, each holding the path of the one before: a
/// closure of many paths that costs one build.
pub fn row_of_outputs(name: &str, length: usize) -> Derivation {
    let outputs: Vec<String> = (1..=length).map(|number| format!("o{number}")).collect();
    let script = format!(
        "before=nothing\nfor number in {{1..{length}}}; do\n  output=o$number\n  echo \"number $number after $before\" > \"${{!output}}\"\n  \
         before=${{!output}}\ndone"
    );
    Derivation::new(name, &script).outputs(&outputs.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Many outputs of one derivation, each with the path of the one before it and a piece of this very program,
/// which compresses as programs do: of so many sizes by turns, from 4 KiB on, each twice the one before.
pub fn row_of_programs(name: &str, length: usize, sizes: usize) -> Derivation {
    rows_of_programs(name, length, sizes, 1)
}

/// The same with so many rows beside each other, whose ends the last output refers to.
pub fn rows_of_programs(name: &str, length: usize, sizes: usize, rows: usize) -> Derivation {
    let outputs: Vec<String> = (1..=length).map(|number| format!("o{number}")).collect();
    let program = std::env::current_exe().expect("this program is a file");
    let script = format!(
        "for number in {{1..{length}}}; do\n  output=o$number\n  mkdir -p \"${{!output}}/bin\"\n  \
         first=$(( number - {rows} )) last=$(( number - {rows} ))\n  \
         if [ $number = {length} ]; then last=$(( number - 1 )); fi\n  \
         echo \"number $number\" > \"${{!output}}/before\"\n  \
         while [ $first -le $last ]; do\n    before=o$first\n    \
         if [ $first -gt 0 ]; then echo \"after ${{!before}}\" >> \"${{!output}}/before\"; fi\n    \
         first=$(( first + 1 ))\n  done\n  \
         size=$(( 4096 << (number % {sizes}) ))\n  \
         tail -c +$(( number * 20011 )) {} | head -c $size > \"${{!output}}/bin/program\"\ndone\n:",
        program.display()
    );
    Derivation::new(name, &script).outputs(&outputs.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A closure of 20 paths with all that a NAR can hold, of eight derivations; it ends in one with an odd name.
pub fn closure_of_20(name: &str) -> Derivation {
    let script = "mkdir $out; ln -s $tree $out/tree; ln -s $dev $out/dev; echo $row $chain > $out/names";
    Derivation::new(ODD_NAME, script)
        .input("tree", &curious_tree(&format!("{name}-tree")))
        .input_output("dev", &multiple_outputs(&format!("{name}-several")), "dev")
        .input_output("row", &row_of_outputs(&format!("{name}-row"), 10), "o10")
        .input("chain", &chain(&format!("{name}-chain"), 4, |_| String::new()))
}

/// A name with every kind of character that a store path may have.
pub const ODD_NAME: &str = "odd+name?with=every.kind_of-character-1.0";

/// `length` derivations in a row, each holding the path of the one before; the last is returned. `prelude(n)`
/// gives lines for the start of the script of number `n`, counted from 0.
pub fn chain(name: &str, length: usize, prelude: impl Fn(usize) -> String) -> Derivation {
    let first = Derivation::new(&format!("{name}-0"), &format!("{}echo first > \"$out\"", prelude(0)));
    (1..length).fold(first, |before, number| {
        let script = format!("{}echo \"$before\" > \"$out\"", prelude(number));
        Derivation::new(&format!("{name}-{number}"), &script).input("before", &before)
    })
}
