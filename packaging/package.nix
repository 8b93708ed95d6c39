# The package for nixpkgs: `callPackage ./packaging/package.nix { }`.
{ lib, rustPlatform, installShellFiles }:

rustPlatform.buildRustPackage {
  pname = "ondine";
  version = (lib.importTOML ../Cargo.toml).workspace.package.version;
  src = lib.cleanSource ../.;
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [ "--bin" "ondine" ];
  # The tests need a Nix daemon.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];
  postInstall = ''
    $out/bin/ondine man man
    installManPage man/*.1
    installShellCompletion --cmd ondine \
      --bash <($out/bin/ondine completions bash) \
      --zsh <($out/bin/ondine completions zsh) \
      --fish <($out/bin/ondine completions fish)
  '';

  meta = {
    description = "Nix binary cache that builds what it is missing";
    license = [ lib.licenses.mit lib.licenses.asl20 ];
    mainProgram = "ondine";
    platforms = lib.platforms.linux;
  };
}
