# The verbs of the Makefile for Windows PowerShell 5.1 and PowerShell 7:  .\tasks.ps1 run
# -Python picks the interpreter, -PipFlags reaches every pip install, what follows the verb reaches the command.
# If scripts are blocked:  powershell -ExecutionPolicy Bypass -File .\tasks.ps1 run
[CmdletBinding(PositionalBinding = $false)]
param(
    [Parameter(Position = 0)]
    [ValidateSet('help', 'run', 'station', 'wheelhouse', 'demo', 'bench', 'test', 'test-all', 'mutants', 'lint', 'format', 'lock', 'setup', 'setup-station',
        'setup-dev', 'clean')]
    [string] $Verb = 'help',
    [string] $Python = $env:PYTHON,
    [string[]] $PipFlags = @(),
    [Parameter(ValueFromRemainingArguments = $true)]
    [string[]] $Rest = @()
)
Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'
Set-Location -LiteralPath $PSScriptRoot
$env:PYTHONUTF8 = '1'
$Venv = '.venv'
$Bin = Join-Path $Venv 'Scripts'
$Py = Join-Path $Bin 'python.exe'
$Inputs = 'pyproject.toml', 'requirements.txt', 'requirements.lock'

function Invoke-Checked([string] $Program, [string[]] $Arguments) {
    & $Program @Arguments
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}

function Find-Python {
    $probe = 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))'
    $candidates = @('py', '-3.11'), @('py', '-3.12'), @('py', '-3.13'), @('py', '-3'), @('python')
    if ($Python) { $candidates = , @($Python) }
    foreach ($candidate in $candidates) {
        if (-not (Get-Command $candidate[0] -ErrorAction SilentlyContinue)) { continue }
        $options = @($candidate | Select-Object -Skip 1)
        try { & $candidate[0] @options -c $probe 2>$null | Out-Null } catch { continue }
        if ($LASTEXITCODE -eq 0) { return , $candidate }
    }
    [Console]::Error.WriteLine('No Python 3.10 or newer was found; name one: .\tasks.ps1 run -Python C:\path\to\python.exe')
    exit 1
}

function New-Environment {
    if (Test-Path $Py) { return }
    $found = Find-Python
    Invoke-Checked $found[0] (@($found | Select-Object -Skip 1) + @('-m', 'venv', $Venv))
}

function Test-Ready([string] $Stamp, [string[]] $Files) {
    $path = Join-Path $Venv $Stamp
    if (-not (Test-Path $path)) { return $false }
    $made = (Get-Item -Force $path).LastWriteTimeUtc
    return -not ($Files | Where-Object { (Get-Item $_).LastWriteTimeUtc -gt $made })
}

# The locks were made on Python 3.11; some of their versions no longer install on 3.10, which takes the ranges instead.
function Get-Constraint([string] $Lock) {
    & $Py -c 'import sys; sys.exit(sys.version_info < (3, 11))'
    if ($LASTEXITCODE -eq 0) { return @('-c', $Lock) }
    return @()
}

function Install-Extras([string] $Extras, [string[]] $Stamps) {
    New-Environment
    if (Test-Ready $Stamps[0] $Inputs) { return }
    Write-Host "Installing .[$Extras] into $Venv (minutes, the first time) ..."
    $install = @('-m', 'pip', 'install', '-qq', '--disable-pip-version-check') + $PipFlags + @(Get-Constraint 'requirements.lock')
    Invoke-Checked $Py ($install + @('pip>=25', 'setuptools>=77'))
    Invoke-Checked $Py ($install + @('--no-build-isolation', '-e', ".[$Extras]"))
    foreach ($name in $Stamps) { New-Item -ItemType File -Force (Join-Path $Venv $name) | Out-Null }
}

function Get-Station { return @('-r', 'requirements-station.txt') + @(Get-Constraint 'requirements-station.lock') }

function Install-Station {
    New-Environment
    if (Test-Ready '.ready-station' @('requirements-station.txt', 'requirements-station.lock')) { return }
    Write-Host "Installing the service without torch into $Venv (a minute, the first time) ..."
    $here = @()
    if (Test-Path 'wheelhouse') { $here = @('--no-index', '--find-links', 'wheelhouse') }
    Invoke-Checked $Py (@('-m', 'pip', 'install', '-qq', '--disable-pip-version-check') + $PipFlags + $here + @(Get-Station))
    New-Item -ItemType File -Force (Join-Path $Venv '.ready-station') | Out-Null
}

function Save-Wheels {
    New-Environment
    Write-Host 'Downloading into wheelhouse (a minute or two) ...'
    Invoke-Checked $Py (@('-m', 'pip', 'download', '-qq', '--disable-pip-version-check') + $PipFlags +
        @('--only-binary', ':all:', '-d', 'wheelhouse') + @(Get-Station))
}

function Install-Service { Install-Extras 'openvino' @('.ready') }
function Install-Development { Install-Extras 'openvino,postgres,onnx,dev' @('.ready-dev', '.ready') }
function Invoke-Tool([string] $Name, [string[]] $Arguments) { Invoke-Checked (Join-Path $Bin "$Name.exe") $Arguments }

function Invoke-Lint {
    Install-Development
    Invoke-Tool 'ruff' @('check')
    Invoke-Tool 'ruff' @('format', '--check')
    Invoke-Tool 'mypy' @()
}

function Invoke-Tests([string[]] $Arguments) {
    Invoke-Checked $Py (@('-m', 'pytest', "--numprocesses=$([Math]::Min(4, [Environment]::ProcessorCount + 1))", '--dist=worksteal') + $Arguments)
}

function Clear-Outputs {
    $outputs = 'build', 'dist', '*.egg-info', 'demo', '.coverage', '.coverage.*', 'htmlcov', 'coverage.xml',
        '.mypy_cache', '.ruff_cache', '.pytest_cache', '.hypothesis'
    Remove-Item -Recurse -Force -ErrorAction SilentlyContinue $outputs
    Get-ChildItem -Path @('backend', 'tests') -Recurse -Directory -Filter __pycache__ | Remove-Item -Recurse -Force
}

switch ($Verb) {
    'help' {
        Write-Host '.\tasks.ps1 run      set up once and serve on http://127.0.0.1:8000'
        Write-Host '.\tasks.ps1 station  the same without torch: serve an exported extractor (.bdix), installed from wheelhouse\ if it is there'
        Write-Host '.\tasks.ps1 wheelhouse  download what station installs into wheelhouse\, for a machine without a network'
        Write-Host '.\tasks.ps1 demo     set up once, render brake discs, fit, calibrate and inspect them; pictures go to demo\'
        Write-Host '.\tasks.ps1 bench    set up once and time the service on this machine'
        Write-Host '.\tasks.ps1 test     set up once, then ruff, mypy and the tests that take minutes'
        Write-Host '.\tasks.ps1 test-all the same with the slow tests, many more examples and coverage'
        Write-Host '.\tasks.ps1 mutants  change a module in many small ways and list what its tests do not notice'
        Write-Host '.\tasks.ps1 lint     ruff check, ruff format --check and mypy --strict'
        Write-Host '.\tasks.ps1 format   let ruff mend and format the code'
        Write-Host '.\tasks.ps1 lock     write requirements.lock and requirements-station.lock anew'
        Write-Host '.\tasks.ps1 clean    remove caches and build outputs; .venv, wheelhouse, models and datasets stay'
    }
    'run' { Install-Service; Invoke-Checked $Py (@('-m', 'backend', 'serve') + $Rest) }
    'station' { Install-Station; Invoke-Checked $Py (@('-m', 'backend', 'serve') + $Rest) }
    'wheelhouse' { Save-Wheels }
    'demo' { Install-Service; Invoke-Checked $Py (@('-m', 'backend', 'demo') + $Rest) }
    'bench' { Install-Service; Invoke-Checked $Py (@('-m', 'backend', 'bench') + $Rest) }
    'test' { Invoke-Lint; Invoke-Tests $Rest }
    'test-all' {
        Invoke-Lint
        $env:HYPOTHESIS_PROFILE = 'thorough'
        Invoke-Tests (@('-m', 'not benchmark', '--cov', '--cov-report=term') + $Rest)
    }
    'mutants' { Install-Development; Invoke-Checked $Py (@('-m', 'tests.mutants') + $Rest) }
    'lint' { Invoke-Lint }
    'format' { Install-Development; Invoke-Tool 'ruff' @('check', '--fix'); Invoke-Tool 'ruff' @('format') }
    'lock' {
        Install-Development
        $env:CUSTOM_COMPILE_COMMAND = 'make lock'
        $compile = @('--quiet', '--strip-extras', '--allow-unsafe', '--no-emit-index-url', '--no-emit-find-links',
            '--no-emit-trusted-host', '--no-emit-options') + $Rest
        Invoke-Tool 'pip-compile' ($compile + @('--all-extras', '--output-file', 'requirements.lock', 'pyproject.toml'))
        Invoke-Tool 'pip-compile' ($compile + @('--constraint', 'requirements.lock', '--output-file', 'requirements-station.lock',
            'requirements-station.txt'))
    }
    'setup' { Install-Service }
    'setup-station' { Install-Station }
    'setup-dev' { Install-Development }
    'clean' { Clear-Outputs }
}
