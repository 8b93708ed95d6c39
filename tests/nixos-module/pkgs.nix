# As much of nixpkgs' `pkgs` as the modules need to be evaluated. Files it writes are real, so that scripts can be
# run; nothing is built.
{
  # The type of a TOML value.
  tomlType,
}:

let
  inherit (builtins) attrNames concatStringsSep isAttrs isList toFile toJSON;

  # A TOML value in one line: strings, numbers and truth values read alike in JSON and TOML.
  inline = value:
    if isList value then "[${concatStringsSep ", " (map inline value)}]"
    else if isAttrs value then
      "{ ${concatStringsSep ", " (map (key: "${key} = ${inline value.${key}}") (attrNames value))} }"
    else toJSON value;
in
{
  formats.toml = { }: {
    type = tomlType;
    generate = name: value:
      toFile name (concatStringsSep "" (map (key: "${key} = ${inline value.${key}}\n") (attrNames value)));
  };
  writeShellScript = name: text: toFile name text;
  # Not built: its file is the script, for the test to run.
  runCommand = name: environment: script: toFile name script;
}
