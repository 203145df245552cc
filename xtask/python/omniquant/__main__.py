from omniquant import main

main()
