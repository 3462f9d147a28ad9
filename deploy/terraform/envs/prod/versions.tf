terraform {
  required_version = ">= 1.10"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.20"
    }
  }

  # The bucket of the state is made once, by hand (README.md); locks are objects in it.
  backend "s3" {
    key          = "iot-pipeline/prod/terraform.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}
