# Evaluates a module with nixpkgs' own `lib`: the same interface as ./stub.nix, and the path of that `lib`.
{
  module,
  machine,
  # The folder `lib` of nixpkgs.
  libPath,
}:

let
  lib = import libPath;
  names = import ./nixos.nix;
  anything = lib.mkOption {
    type = lib.types.submodule { freeformType = lib.types.attrsOf lib.types.anything; };
    default = { };
  };
  # Options of NixOS that the modules define.
  nixos = {
    options = lib.genAttrs names.groups (name: anything) // {
      assertions = lib.mkOption { type = lib.types.listOf lib.types.anything; default = [ ]; };
      services = lib.genAttrs names.services (name: anything);
    };
    config.nix.package = "/nix/store/the-nix-of-this-machine";
  };
  inherit (lib.evalModules {
    modules = [ module nixos (builtins.fromJSON machine) ];
    specialArgs.pkgs = import ./pkgs.nix { tomlType = (lib.types.attrsOf lib.types.anything); };
  }) config;

  service = config.services.ondine;
  isEnabled = (service.enable or false) || (service.client.enable or false);
  broken = builtins.filter (assertion: !assertion.assertion) config.assertions;
  made = { inherit (config) environment networking nix services systemd users; };
in
if broken != [ ] then throw (builtins.concatStringsSep "\n" (map (assertion: assertion.message) broken))
else if isEnabled then builtins.deepSeq service made
else if config.systemd == { } && config.users == { } && config.networking == { } then null
else throw "a module that is not enabled defines something"
