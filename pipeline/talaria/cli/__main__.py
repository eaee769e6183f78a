from talaria.cli import main

main()
