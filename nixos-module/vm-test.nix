# A test in virtual machines: a server, and a client whose missing derivation the server builds. It runs with
# `nix build .#checks.x86_64-linux.vm`.
{ nixosModules }:

{
  name = "ondine";

  nodes.server = { pkgs, ... }: {
    imports = [ nixosModules.default ];
    services.ondine = {
      enable = true;
      openFirewall = true;
      socketActivation = true;
      settings.listen = "0.0.0.0:8080";
    };
    # What the client asks for, as a derivation that is not built.
    system.extraDependencies = [ pkgs.busybox ];
    environment.etc."sample.nix".text = ''
      derivation {
        name = "sample";
        system = "${pkgs.stdenv.hostPlatform.system}";
        builder = "${pkgs.busybox}/bin/sh";
        args = [ "-c" "echo made > $out" ];
      }
    '';
  };

  nodes.client = { };

  testScript = ''
    server.wait_for_unit("ondine.service")
    server.wait_for_open_port(8080)
    server.succeed("systemctl show ondine --property=NotifyAccess | grep main")
    derivation = server.succeed("nix-instantiate /etc/sample.nix").strip()
    output = server.succeed(f"nix-store --query --outputs {derivation}").strip()
    server.fail(f"test -e {output}")
    key = server.succeed("journalctl -u ondine | sed -n 's/.*public key: //p' | tail -n 1").strip()
    client.succeed(
        f"nix-store --realise {output} --option substituters http://server:8080 "
        f"--option trusted-public-keys '{key}'"
    )
    client.succeed(f"grep made {output}")
    server.succeed("systemctl restart ondine")
    client.succeed("curl --fail http://server:8080/nix-cache-info")
  '';
}
