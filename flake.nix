{
  description = "Ondine: a Nix binary cache that builds what it is missing";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      package = pkgs: pkgs.callPackage ./packaging/package.nix { };
    in
    {
      packages = forEach (pkgs: rec {
        ondine = package pkgs;
        default = ondine;
      });

      overlays.default = final: prev: { ondine = package final; };

      nixosModules = rec {
        ondine = { lib, pkgs, ... }: {
          imports = [ ./nixos-module ];
          services.ondine.package = lib.mkDefault (package pkgs);
        };
        client = { lib, pkgs, ... }: {
          imports = [ ./nixos-module/client.nix ];
          services.ondine.client.package = lib.mkDefault (package pkgs);
        };
        default = ondine;
      };

      # `nix run . -- try` is the demo, `nix run . -- serve` the server.
      apps = forEach (pkgs: rec {
        ondine = {
          type = "app";
          program = "${package pkgs}/bin/ondine";
        };
        default = ondine;
      });

      checks = forEach (pkgs: {
        package = package pkgs;
        vm = pkgs.testers.runNixOSTest (import ./nixos-module/vm-test.nix { inherit (self) nixosModules; });
      });

      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          packages = [ pkgs.cargo pkgs.clippy pkgs.nix pkgs.rustc pkgs.rustfmt ];
        };
      });
    };
}
