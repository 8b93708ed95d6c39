# As much of nixpkgs' flake as Ondine's flake.nix needs to be evaluated without the network.
{
  description = "Stands for nixpkgs in tests";

  outputs = { self }: {
    lib = {
      genAttrs = names: make: builtins.listToAttrs (map (name: { inherit name; value = make name; }) names);
      importTOML = path: builtins.fromTOML (builtins.readFile path);
      cleanSource = path: path;
      licenses = { mit = "MIT"; asl20 = "Apache-2.0"; };
      platforms.linux = [ "x86_64-linux" "aarch64-linux" ];
    };

    legacyPackages = self.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
      system:
      let
        made = name: derivation { inherit name system; builder = "/bin/sh"; };
        pkgs = {
          inherit (self) lib;
          callPackage = file: overrides:
            let function = import file;
            in function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // overrides);
          rustPlatform.buildRustPackage = { pname, version, meta, cargoLock, ... }:
            assert builtins.pathExists cargoLock.lockFile;
            made "${pname}-${version}" // { inherit meta; };
          testers.runNixOSTest = test: assert test ? testScript; made "vm-test-run-${test.name}";
          mkShell = { packages }: builtins.seq (builtins.length packages) (made "shell");
        } // builtins.listToAttrs (map (name: { inherit name; value = made name; })
          [ "cargo" "clippy" "installShellFiles" "nix" "rustc" "rustfmt" ]);
      in
      pkgs
    );
  };
}
