# The verbs of the Makefile for Windows PowerShell 5.1 and PowerShell 7:  .\tasks.ps1 run
# -Python picks the interpreter, -PipFlags reaches every pip install, what follows the verb reaches the command.
# If scripts are blocked:  powershell -ExecutionPolicy Bypass -File .\tasks.ps1 run
[CmdletBinding(PositionalBinding = $false)]
param(
    [Parameter(Position = 0)]
    [ValidateSet('help', 'run', 'demo', 'bench', 'test', 'test-all', 'mutants', 'lint', 'format', 'lock', 'setup', 'setup-dev', 'clean')]
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

function Install-Extras([string] $Extras, [string[]] $Stamps) {
    if (-not (Test-Path $Py)) {
        $found = Find-Python
        Invoke-Checked $found[0] (@($found | Select-Object -Skip 1) + @('-m', 'venv', $Venv))
    }
    $stamp = Join-Path $Venv $Stamps[0]
    if (Test-Path $stamp) {
        $made = (Get-Item -Force $stamp).LastWriteTimeUtc
        if (-not ($Inputs | Where-Object { (Get-Item $_).LastWriteTimeUtc -gt $made })) { return }
    }
    Write-Host "Installing .[$Extras] into $Venv (minutes, the first time) ..."
    # The lock was made on Python 3.11; some of its versions no longer install on 3.10, which takes the ranges instead.
    $lock = @()
    & $Py -c 'import sys; sys.exit(sys.version_info < (3, 11))'
    if ($LASTEXITCODE -eq 0) { $lock = @('-c', 'requirements.lock') }
    $install = @('-m', 'pip', 'install', '-qq', '--disable-pip-version-check') + $PipFlags + $lock
    Invoke-Checked $Py ($install + @('pip>=25', 'setuptools>=77'))
    Invoke-Checked $Py ($install + @('--no-build-isolation', '-e', ".[$Extras]"))
    foreach ($name in $Stamps) { New-Item -ItemType File -Force (Join-Path $Venv $name) | Out-Null }
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
        Write-Host '.\tasks.ps1 demo     set up once, render brake discs, fit, calibrate and inspect them; pictures go to demo\'
        Write-Host '.\tasks.ps1 bench    set up once and time the service on this machine'
        Write-Host '.\tasks.ps1 test     set up once, then ruff, mypy and the tests that take minutes'
        Write-Host '.\tasks.ps1 test-all the same with the slow tests, many more examples and coverage'
        Write-Host '.\tasks.ps1 mutants  change a module in many small ways and list what its tests do not notice'
        Write-Host '.\tasks.ps1 lint     ruff check, ruff format --check and mypy --strict'
        Write-Host '.\tasks.ps1 format   let ruff mend and format the code'
        Write-Host '.\tasks.ps1 lock     write requirements.lock anew'
        Write-Host '.\tasks.ps1 clean    remove caches and build outputs; .venv, models and datasets stay'
    }
    'run' { Install-Service; Invoke-Checked $Py (@('-m', 'backend', 'serve') + $Rest) }
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
        Invoke-Tool 'pip-compile' (@('--quiet', '--all-extras', '--strip-extras', '--allow-unsafe',
            '--no-emit-index-url', '--no-emit-find-links', '--no-emit-trusted-host', '--no-emit-options',
            '--output-file', 'requirements.lock') + $Rest + @('pyproject.toml'))
    }
    'setup' { Install-Service }
    'setup-dev' { Install-Development }
    'clean' { Clear-Outputs }
}
